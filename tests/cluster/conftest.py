"""Runs of a small system, to be disturbed, and the one that nothing disturbed; nodes of Ray, to be lost."""

import gc
import os
import shutil
import signal
import subprocess
import time
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import ray
import torch
from mlflow import MlflowClient
from ray.cluster_utils import Cluster

from orchestrator.ledger.folders import BRANCHES, SYSTEMS
from scoring.table import read_table
from tests.commands import TUTTI, free_port

SYSTEM = """
name: small
branch: {embedding_dim: 16, pooling: band_mean, training: {steps: 400, batch_size: 4, crop_seconds: 0.5,
  learning_rate: 1.0e-3, warmup_steps: 2}}
subsystems: {one: {softmax: {branch: {objective: {name: softmax}}, seeds: [0, 1]}}}
"""


class Trial:
    def __init__(self, data: Path, folder: Path, system: str = SYSTEM) -> None:
        self.data, self.out, self.system = data, folder / "out", folder / "system.yaml"
        folder.mkdir(exist_ok=True)
        self.system.write_text(system)
        self.arguments = ["run", self.system, "--data", data, "--out", self.out, "--checkpoint-seconds", 0]

    def start(self, *options: object) -> subprocess.Popen[str]:
        command, pipe = [TUTTI, *map(str, [*self.arguments, *options])], subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)

    def tables(self) -> dict[Path, object]:
        paths = [path for folder in (BRANCHES, SYSTEMS) for path in (self.out / folder).rglob("*.parquet")]
        return {path.relative_to(self.out): read_table(path) for path in paths}

    def checkpoints(self) -> list[Path]:
        return sorted((self.out / "checkpoints").rglob("*.pt"))

    def training(self, branches: int = 1) -> bool:
        """Whether that many branches are well into their training, and not at its end."""
        return sum(step_of(path) > 10 for path in self.checkpoints()) >= branches

    def statuses(self, uri: str | None = None) -> list[tuple[str, str]]:
        client = MlflowClient(uri or f"sqlite:///{self.out / 'mlflow.db'}")
        runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
        return sorted((run.data.tags["role"], run.info.status) for run in runs)


def step_of(checkpoint: Path) -> int:
    with suppress(FileNotFoundError):  # the branch has just ended
        return torch.load(checkpoint, weights_only=True)["step"]
    return 0


def finish(run: subprocess.Popen[str], *codes: int) -> str:
    try:
        _, errors = run.communicate(timeout=400)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode in (codes or [0]), errors
    return errors


def wait_for(condition, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@contextmanager
def background(log, command, running):
    """A command that runs until the block ends, with what it starts; the block begins when it is running."""
    with open(log, "ab") as file:
        process = subprocess.Popen([*map(str, command)], stdout=file, stderr=file, start_new_session=True)
    try:
        wait_for(running)
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def below(root: int, command: str) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(root).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found += [process] if command in " ".join(process.cmdline()) else []
    return found


def branches_of(run: subprocess.Popen[str]) -> list[psutil.Process]:
    return [branch for server in below(run.pid, "forkserver") for branch in server.children()]


@contextmanager
def ray_node(name, *options, within=()):
    """A node of Ray as a command starts it; the path of a Unix socket, below its folder, has at most 107 characters."""
    folder = f"/tmp/tutti-{os.getpid()}{name}"
    command = [*within, Path(TUTTI).with_name("ray"), "start", "--block", f"--temp-dir={folder}", *options]
    command += [f"--dashboard-agent-listen-port={free_port()}"]
    log = Path(f"{folder}.log")
    try:
        with background(log, command, lambda: "Ray runtime started" in log.read_text()) as node:
            yield node
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        log.unlink()


@contextmanager
def ray_cluster(**head):
    """Ray's own cluster of nodes that are processes here, so far one; it forgets sockets, which no later test finds."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "unclosed <socket", ResourceWarning)
        cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **head})
        try:
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()
            gc.collect()


@pytest.fixture(scope="session")
def undisturbed(dataset, shared):
    return Trial(dataset, shared("undisturbed", lambda folder: finish(Trial(dataset, folder).start())))


@pytest.fixture
def trial(dataset, tmp_path):
    return Trial(dataset, tmp_path)
