#!/bin/bash
# The whole way on one machine: PostgreSQL, an MLflow server on it, a Ray head, a second node, and `tutti submit`.
#   sudo apt-get install postgresql && tests/cluster/try_cluster.sh        (about two minutes; needs no root but for this)
# Everything runs on ports and in folders of its own, and is stopped by process id.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=${BIN:-$PWD/.venv/bin}
export PATH="$bin:$PATH" PYTHONPATH="$PWD" RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
folder=$(mktemp -d /tmp/try.XXXX)
chmod 755 "$folder"
started=()
postgres=(env)
[ "$(id -u)" != 0 ] || postgres=(runuser -u postgres --)   # PostgreSQL refuses to run as root

port() { python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
background() { local log=$1; shift; setsid "$@" >"$folder/$log.log" 2>&1 & started+=($!); }
until_open() { for _ in $(seq 240); do (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return; sleep 0.5; done; echo "port $1 stays closed"; exit 1; }
stop() {
    status=$?
    for ((i = ${#started[@]} - 1; i >= 0; i--)); do kill -- "-${started[i]}" 2>/dev/null || true; done
    sleep 3
    for id in "${started[@]}"; do kill -9 -- "-$id" 2>/dev/null || true; done
    [ $status = 0 ] && rm -rf "$folder" || echo "failed; logs are in $folder"
}
trap stop EXIT

echo "== PostgreSQL"
sql=$(ls -d /usr/lib/postgresql/*/bin | tail -1)
db=$(port)
mkdir "$folder/pg"
[ "$(id -u)" != 0 ] || chown postgres "$folder/pg"
"${postgres[@]}" "$sql/initdb" --auth=trust --username=mlflow --pgdata="$folder/pg/data" >"$folder/initdb.log"
background postgres "${postgres[@]}" "$sql/postgres" -D "$folder/pg/data" -p "$db" -k "$folder/pg" -c listen_addresses=127.0.0.1
until_open "$db"
python -c 'import psycopg2' 2>/dev/null || {
    python -m pip install --quiet --disable-pip-version-check --target "$folder/site" psycopg2-binary
    export PYTHONPATH="$PYTHONPATH:$folder/site"
}

echo "== MLflow server"
mlflow=$(port)
background mlflow python -m mlflow server --host 127.0.0.1 --port "$mlflow" --workers 1 \
    --backend-store-uri "postgresql+psycopg2://mlflow@127.0.0.1:$db/postgres" --artifacts-destination "$folder/artifacts"
until_open "$mlflow"

echo "== Ray: a head and a second node"
gcs=$(port) dashboard=$(port)
background head ray start --head --block --node-ip-address=127.0.0.1 --port="$gcs" --num-cpus=1 --temp-dir="$folder/ray" \
    --dashboard-host=127.0.0.1 --dashboard-port="$dashboard" --dashboard-agent-listen-port="$(port)" \
    --ray-client-server-port="$(port)"
until_open "$dashboard"
# A temporary folder of its own, as on another machine: both nodes unpack the job's code.
background node ray start --address="127.0.0.1:$gcs" --block --node-ip-address=127.0.0.1 --num-cpus=1 \
    --temp-dir="$folder/ray2" --dashboard-agent-listen-port="$(port)"

echo "== tutti submit"
python - "$folder/data" <<'DATA'
import sys
from pathlib import Path

from branches.data.synthetic import SyntheticSize, write_dataset

write_dataset(Path(sys.argv[1]), SyntheticSize(10, 3, 3, 1.0), machines=["rotor", "pump"])
DATA
cat >"$folder/small.yaml" <<'SYSTEM'
name: small
branch: {embedding_dim: 16, pooling: band_mean, training: {steps: 30, batch_size: 4, crop_seconds: 0.5, warmup_steps: 2}}
subsystems: {one: {softmax: {branch: {objective: {name: softmax}}, seeds: [0, 1, 2, 3]}}}
SYSTEM
submit=(tutti submit "$folder/small.yaml" --address "http://127.0.0.1:$dashboard" --data "$folder/data" --out "$folder/out"
    --tracking-uri "http://127.0.0.1:$mlflow")
"${submit[@]}"
echo "== again: nothing is left to do"
"${submit[@]}" 2>&1 | tee "$folder/again.log" >&2
grep -q "5 of 5 branches finished" "$folder/again.log"

echo "== what MLflow has on PostgreSQL"
python - "http://127.0.0.1:$mlflow" <<'CHECK'
import sys
from mlflow import MlflowClient

client = MlflowClient(sys.argv[1])
runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
found = sorted((run.data.tags.get("role"), run.info.status) for run in runs)
print(found)
assert found == [("branch", "FINISHED")] * 5 + [("fusion", "FINISHED"), ("run", "FINISHED")]
CHECK
! grep -rqF "$RAY_AUTH_TOKEN" "$folder/out" "$folder/ray" "$folder"/*.log || { echo "the token is in a log"; exit 1; }
echo "== all well"
