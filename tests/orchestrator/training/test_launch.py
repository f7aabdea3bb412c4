"""Branches on a real Ray: killed again and again they are tried with more memory, and no GPU waits for their scores."""

import errno
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from branches.spec import BranchSpec
from cluster.session import session
from orchestrator.plan import Branch
from orchestrator.training.job import Job
from orchestrator.training.launch import launch
from orchestrator.training.worker import Hopeless
from scoring.detectors import MahalanobisSpec
from scoring.errors import InputError
from tests.tables import make_table

RETRIES, SCALES = 1, (1, 2)  # for each try is of a new worker, which takes seconds


@dataclass(frozen=True)
class Work:
    """Dies as often as the branch's seed says, unless it is to fail in another way."""

    folder: Path

    def __call__(self, branch, job, index, report):
        with (self.folder / branch.branch_id).open("a") as file:
            file.write("x")
        if branch.name == "wrong":
            raise InputError("it is wrong; mend it")
        if branch.name == "faulty":
            raise ImportError("libtorchaudio.so: undefined symbol")
        if branch.name == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        if branch.name == "away" and (self.folder / branch.branch_id).stat().st_size == 1:
            raise ConnectionResetError("the storage's server went away")
        if branch.name == "lame":
            raise Hopeless("it learns nothing")
        if (self.folder / branch.branch_id).stat().st_size <= branch.spec.seed:
            os.kill(os.getpid(), signal.SIGKILL)
        return 50.0


@pytest.mark.faults
@pytest.mark.slow
def test_how_branches_end(tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.training.launch.RETRIES", RETRIES)
    monkeypatch.setattr("orchestrator.training.launch.SCALES", SCALES)
    deaths = {"well": 0, "unlucky": 1, "hungry": RETRIES + 1, "doomed": 1000, "lame": 0}
    deaths |= dict.fromkeys(("wrong", "faulty", "full", "away"), 0)
    branches = [Branch(n, n, n, ("s",), BranchSpec(seed=d), (MahalanobisSpec(),)) for n, d in deaths.items()]
    job = Job(tmp_path, tmp_path, tmp_path, tmp_path, "", make_table().select([]), 1, 0.0, None, 60.0, [], ())
    (tmp_path / "tries").mkdir()
    with session(num_cpus=2):
        outcome = launch(branches, job, make_table().select([]), Work(tmp_path / "tries"))
    tries = {path.name: path.stat().st_size for path in (tmp_path / "tries").iterdir()}
    each = RETRIES + 1
    assert tries == {
        **{"well": 1, "unlucky": 2, "away": 2, "hungry": each + 1, "doomed": each * len(SCALES)},
        **{"lame": 1, "wrong": 1, "faulty": 1, "full": 1},
    }
    assert outcome.given_up == {"lame": "it learns nothing"}
    assert set(outcome.failures) == {"doomed", "wrong", "faulty", "full"}
    assert outcome.failures["faulty"].endswith("ImportError: libtorchaudio.so: undefined symbol")
    assert outcome.failures["wrong"] == "it is wrong; mend it"
    assert "killed, most likely for lack of memory" in outcome.failures["doomed"]


@dataclass(frozen=True)
class Parts:
    """Notes which part of a branch is done on which GPU; of the embeddings, the second wait for the first's scores."""

    folder: Path

    def __call__(self, branch, job, index, report):
        if branch.name == "wrong":
            raise InputError("it is wrong; mend it")
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        (self.folder / f"{branch.branch_id}.{job.part}").write_text(f"{job.device} {gpus}")
        second = len(list(self.folder.glob("*.embeddings"))) == 2
        deadline = time.monotonic() + 60
        while job.part == "embeddings" and second and not list(self.folder.glob("*.scores")):
            assert time.monotonic() < deadline, "the first branch is not scored beside the second"
            time.sleep(0.1)
        return None if job.part == "embeddings" else 50.0


@pytest.mark.slow
def test_a_gpu_goes_to_the_next_branch_while_the_last_is_scored(tmp_path, capsys):
    branches = [
        Branch(n, n, n, ("s",), BranchSpec(seed=i), (MahalanobisSpec(),)) for i, n in enumerate(["a", "b", "wrong"])
    ]
    job = Job(tmp_path, tmp_path, tmp_path, tmp_path, "", make_table().select([]), 1, 1.0, None, 60.0, [], ())
    (tmp_path / "parts").mkdir()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1})  # which only Ray counts
    try:
        with session(cluster.address):
            outcome = launch(branches, job, make_table().select([]), Parts(tmp_path / "parts"))
    finally:
        cluster.shutdown()
    assert outcome.failures == {"wrong": "it is wrong; mend it"}
    parts = {path.name: path.read_text() for path in (tmp_path / "parts").iterdir()}
    assert parts == {"a.embeddings": "cuda 0", "a.scores": "cpu ", "b.embeddings": "cuda 0", "b.scores": "cpu "}
    lines = capsys.readouterr().err.splitlines()
    assert sum("started" in line for line in lines) == 3
    assert sum("Omega 50.00" in line for line in lines) == 2
