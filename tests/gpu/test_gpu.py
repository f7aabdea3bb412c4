"""What only a GPU can show, with the whole of tutti; skipped where there is none."""

import json
import os
import signal
import time
from functools import partial

import pytest
import torch

from orchestrator.training.process import KILLED, ProcessDied, in_own_process, packed
from scoring.table import read_table
from tests.commands import SMALL_SYSTEM, tutti
from tests.gpu.checks import CHECKS, MEASURES, clips, spec_of, train

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.filterwarnings("ignore"),  # of the compiler's own doing, and of the mode that forbids waiting
]


@pytest.mark.parametrize(
    "check", [*(partial(check, "cuda", 50) for check in CHECKS), *map(partial, MEASURES)], ids=lambda c: c.func.__name__
)
def test_as_on_a_cpu_and_how_fast(check):
    check()


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


def test_a_run_and_its_packaged_model_give_the_same_scores(dataset, tmp_path):
    out, model = tmp_path / "out", tmp_path / "model"
    (tmp_path / "small.yaml").write_text(SMALL_SYSTEM)
    finished = tutti("run", tmp_path / "small.yaml", "--data", dataset, "--out", out)
    assert finished.returncode == 0, finished.stderr
    records = [json.loads(path.read_text()) for path in out.glob("branches/*/record.json")]
    assert all(record["metrics"]["gpu_memory_gib"] > 0 for record in records)
    assert tutti("export", out, "small", "--out", model).returncode == 0
    scored = tutti("score", model, dataset / "pump" / "test", "--machine", "pump", "--json")
    assert scored.returncode == 0, scored.stderr
    fused = read_table(out / "systems" / "small" / "fused.parquet").to_pylist()
    expected = {r["clip"]: r["score"] for r in fused if r["machine"] == "pump" and r["split"] == "test"}
    scores = {row["clip"]: row["score"] for row in json.loads(scored.stdout)["scores"]}
    assert scores == pytest.approx(expected, abs=1e-3)
