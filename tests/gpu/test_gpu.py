"""What only a GPU can show, with the whole of tutti; and that the checks need no more than they say."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from orchestrator.training.process import KILLED, ProcessDied, in_own_process, packed
from scoring.table import read_table
from tests.commands import SMALL_SYSTEM, tutti
from tests.gpu.checks import CHECKS, MEASURES, clips, spec_of, train

# Of the compiler's own doing, and of the mode that forbids waiting.
pytestmark = pytest.mark.filterwarnings("ignore")
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
# What an image with torch, torchaudio, numpy, scipy, scikit-learn, pyarrow, soundfile and pydantic lacks.
ABSENT = ("ray", "mlflow", "orchestrator", "cluster", "fusion", "hyperopt", "psutil", "click", "yaml")
BARE = f"""
import runpy, sys
class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
sys.argv = ["checks", "--device", "cpu", "--steps", "4"]
runpy.run_module("tests.gpu.checks", run_name="__main__")
"""


@pytest.mark.slow
def test_the_checks_hold_on_a_cpu_in_a_bare_image():
    command = [sys.executable, "-W", "error::UserWarning", "-c", BARE]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.count("resumed: relative error 0.0e+00") == 5


@on_a_gpu
@pytest.mark.parametrize("check", [*CHECKS, *MEASURES])
def test_as_on_a_cpu_and_how_fast(check):
    check()


def die_in_training(steps, report):
    def kill(step, loss):
        os.kill(os.getpid(), signal.SIGKILL)

    train(spec_of(steps), clips(16, 1.2), None, kill, device="cuda")


@on_a_gpu
def test_a_killed_branch_gives_its_memory_back():
    free = torch.cuda.mem_get_info()[0]
    with pytest.raises(ProcessDied, match=KILLED):
        in_own_process(packed(10), packed((die_in_training,)), print)
    time.sleep(1)
    assert abs(torch.cuda.mem_get_info()[0] - free) < 64 << 20


@on_a_gpu
def test_a_run_and_its_packaged_model_give_the_same_scores(dataset, tmp_path):
    out, model = tmp_path / "out", tmp_path / "model"
    (tmp_path / "small.yaml").write_text(SMALL_SYSTEM)
    run = ("run", tmp_path / "small.yaml", "--data", dataset, "--out", out)
    score = ("score", model, dataset / "pump" / "test", "--machine", "pump", "--json")
    for words in (run, ("export", out, "small", "--out", model), score):
        done = tutti(*words)
        assert done.returncode == 0, done.stderr
    records = [json.loads(path.read_text()) for path in out.glob("branches/*/record.json")]
    assert all(record["metrics"]["gpu_memory_gib"] > 0 for record in records)
    fused = read_table(out / "systems" / "small" / "fused.parquet").to_pylist()
    expected = {r["clip"]: r["score"] for r in fused if r["machine"] == "pump" and r["split"] == "test"}
    scores = {row["clip"]: row["score"] for row in json.loads(done.stdout)["scores"]}
    assert scores == pytest.approx(expected, abs=1e-3)
