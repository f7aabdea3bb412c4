#!/bin/bash
# A Ray cluster on the nodes of a Slurm job, and a run on it; a job that is requeued goes on where it stopped.
#   sbatch slurm.sh s2 --data /shared/dcase2026 --out /shared/runs/s2
# The environment that holds tutti must be active, and lie where all nodes see it.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_TMPDIR=/tmp/ray-$SLURM_JOB_ID
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000))

srun --nodes=1 --ntasks=1 --nodelist="$first" --overlap \
    ray start --head --block --port="$port" --include-dashboard=false &
head=$!
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    # A node that comes before the head tries again.
    srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --exclude="$first" --overlap \
        bash -c "until ray start --block --address=$first:$port; do sleep 2; done" &
fi
until ray status --address="$first:$port" > /dev/null 2>&1; do
    kill -0 "$head" # a head that could not start ends the job
    sleep 2
done
srun --nodes=1 --ntasks=1 --nodelist="$first" --overlap tutti run "$@" --address "$first:$port"
