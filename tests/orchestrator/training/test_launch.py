"""Branches on a real Ray: what is tried again, and with more memory; what Ctrl-C stops has not failed."""

import errno
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from branches.spec import BranchSpec
from cluster.session import session
from orchestrator.plan import Branch
from orchestrator.training.job import Job
from orchestrator.training.launch import RunInterrupted, launch
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
        if (self.folder / branch.branch_id).stat().st_size <= branch.spec.seed:
            os.kill(os.getpid(), signal.SIGKILL)
        return 50.0


def job_in(folder):
    return Job(
        data=folder,
        out=folder,
        gpus_per_branch=0.0,
        fingerprint="",
        training="",
        noise=make_table().select([]),
        versions=[],
        frozen=(),
    )


@pytest.mark.faults
@pytest.mark.slow
def test_how_branches_end(tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.training.launch.RETRIES", RETRIES)
    monkeypatch.setattr("orchestrator.training.launch.SCALES", SCALES)
    deaths = {"well": 0, "unlucky": 1, "hungry": RETRIES + 1, "doomed": 1000}
    deaths |= dict.fromkeys(("wrong", "faulty", "full", "away"), 0)
    branches = [Branch(n, n, n, ("s",), BranchSpec(seed=d), (MahalanobisSpec(),)) for n, d in deaths.items()]
    (tmp_path / "tries").mkdir()
    with session(num_cpus=2):
        failures = launch(branches, job_in(tmp_path), make_table().select([]), Work(tmp_path / "tries"))
    tries = {path.name: path.stat().st_size for path in (tmp_path / "tries").iterdir()}
    each = RETRIES + 1
    assert tries == {
        **{"well": 1, "unlucky": 2, "away": 2, "hungry": each + 1, "doomed": each * len(SCALES)},
        **{"wrong": 1, "faulty": 1, "full": 1},
    }
    assert set(failures) == {"doomed", "wrong", "faulty", "full"}
    assert failures["faulty"].endswith("ImportError: libtorchaudio.so: undefined symbol")
    assert failures["wrong"] == "it is wrong; mend it"
    assert "killed, most likely for lack of memory" in failures["doomed"]


def quick(branch, job, index, report):
    """The first branch fails, the second ends the driver as Ctrl-C does, the others never end."""
    if branch.name == "failed":
        raise InputError("it is wrong; mend it")
    if branch.name == "interrupts":
        time.sleep(1)
        os.kill(int(branch.config_id), signal.SIGINT)
    time.sleep(100)


@pytest.mark.slow
def test_ctrl_c_is_no_failure_of_the_branches_that_it_stops(tmp_path):
    branches = [
        Branch(n, str(os.getpid()), n, ("s",), BranchSpec(), (MahalanobisSpec(),))
        for n in ("failed", "interrupts", "waits", "never begins")
    ]
    with session(num_cpus=2), pytest.raises(RunInterrupted, match="3 branches unfinished; run again to continue"):
        launch(branches, job_in(tmp_path), make_table().select([]), quick)
