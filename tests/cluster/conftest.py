"""A data set, a system of two small branches, and the run that nothing disturbed, for all tests of faults."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch

from branches.data.synthetic import SyntheticSize, write_dataset
from orchestrator.ledger.folders import BRANCHES
from scoring.table import read_table
from tests.commands import TUTTI, tutti

SYSTEM = """
name: small
branch:
  embedding_dim: 16
  pooling: band_mean
  training: {steps: 400, batch_size: 4, crop_seconds: 0.5, learning_rate: 1.0e-3, warmup_steps: 2}
subsystems:
  one:
    softmax: {branch: {objective: {name: softmax}}, seeds: [0, 1]}
"""


class Trial:
    """One output folder, and runs into it."""

    def __init__(self, data: Path, out: Path) -> None:
        self.data, self.out = data, out
        self.system = data.with_name("small.yaml")
        self.arguments = ["run", self.system, "--data", data, "--out", out, "--checkpoint-seconds", 0]

    def start(self, *options: object) -> subprocess.Popen[str]:
        """A run in a process group of its own, as from a terminal."""
        command = [TUTTI, *map(str, [*self.arguments, *options])]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def again(self, *options: object) -> subprocess.CompletedProcess[str]:
        return tutti(*self.arguments, *options, timeout=400)

    def tables(self) -> dict[str, object]:
        """All score tables, of branches and of the system, by place."""
        paths = [*(self.out / BRANCHES).rglob("*.parquet"), *(self.out / "systems").rglob("*.parquet")]
        return {str(path.relative_to(self.out)): read_table(path) for path in paths}

    def training(self, branches: int = 1) -> bool:
        """Whether that many branches are well into their training, and not at its end."""
        return sum(step_of(path) > 10 for path in (self.out / "checkpoints").rglob("*.pt")) >= branches


def step_of(checkpoint: Path) -> int:
    try:
        return torch.load(checkpoint, weights_only=True)["step"]
    except FileNotFoundError:  # the branch has just ended
        return 0


def wait_for(condition: Callable[[], object], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def workers_of(run: subprocess.Popen[str]) -> list[psutil.Process]:
    """Ray's workers in which a run trains branches."""
    return [process for process in below(run.pid) if "ImplicitFunc" in command_of(process)]


def branches_of(run: subprocess.Popen[str]) -> list[psutil.Process]:
    """The branches' own processes."""
    servers = {process for process in below(run.pid) if "forkserver" in command_of(process)}
    return [process for process in servers if parent_of(process) in servers]


def below(root: int) -> list[psutil.Process]:
    """What a process started, directly or not."""
    return psutil.Process(root).children(recursive=True)


def parent_of(process: psutil.Process) -> psutil.Process | None:
    with suppress(psutil.NoSuchProcess):
        return process.parent()
    return None


def command_of(process: psutil.Process) -> str:
    """Its command line; empty once it has ended."""
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return " ".join(process.cmdline())
    return ""


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    write_dataset(folder / "data", SyntheticSize(8, 3, 2, 1.0), machines=["rotor", "pump"])
    (folder / "small.yaml").write_text(SYSTEM)
    trial = Trial(folder / "data", folder / "out")
    run = trial.again()
    assert run.returncode == 0, run.stderr
    return trial


@pytest.fixture
def trial(undisturbed, tmp_path):
    yield Trial(undisturbed.data, tmp_path / "out")
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
