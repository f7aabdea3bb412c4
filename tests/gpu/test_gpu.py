"""What only a GPU can show, with the whole of tutti; skipped where there is none."""

import json
import os
import signal
import time

import pytest
import torch

from branches.data.synthetic import SyntheticSize, write_dataset
from orchestrator.training.process import KILLED, ProcessDied, in_own_process, packed
from scoring.table import read_table
from tests.commands import SMALL_SYSTEM, tutti
from tests.gpu.checks import CHECKS, clips, spec_of, train

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.filterwarnings("ignore"),  # of the compiler's own doing, and of the mode that forbids waiting
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_as_on_a_cpu(check):
    check("cuda", 50)


def die_in_training(steps, report):
    def kill(step, loss):
        os.kill(os.getpid(), signal.SIGKILL)

    train(spec_of(steps), clips(16, 1.2), None, kill, device="cuda")


def test_a_killed_branch_gives_its_memory_back():
    free = torch.cuda.mem_get_info()[0]
    with pytest.raises(ProcessDied, match=KILLED):
        in_own_process(packed(10), packed((die_in_training,)), print)
    time.sleep(1)
    assert abs(torch.cuda.mem_get_info()[0] - free) < 64 << 20


def test_a_run_and_its_packaged_model_give_the_same_scores(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    write_dataset(data, SyntheticSize(10, 3, 3, 1.0), machines=["rotor", "pump"])
    (tmp_path / "small.yaml").write_text(SMALL_SYSTEM)
    finished = tutti("run", tmp_path / "small.yaml", "--data", data, "--out", out)
    assert finished.returncode == 0, finished.stderr
    records = [json.loads(path.read_text()) for path in out.glob("branches/*/record.json")]
    assert all(record["metrics"]["gpu_memory_gib"] > 0 for record in records)
    assert tutti("export", out, "small", "--out", tmp_path / "model").returncode == 0
    scored = tutti("score", tmp_path / "model", data / "pump" / "test", "--machine", "pump", "--json")
    assert scored.returncode == 0, scored.stderr
    fused = read_table(out / "systems" / "small" / "fused.parquet").to_pylist()
    expected = {r["clip"]: r["score"] for r in fused if r["machine"] == "pump" and r["split"] == "test"}
    scores = {row["clip"]: row["score"] for row in json.loads(scored.stdout)["scores"]}
    assert scores == pytest.approx(expected, abs=1e-3)
