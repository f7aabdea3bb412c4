"""Running `tutti` as a user does."""

import random
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from click.testing import CliRunner, Result

from orchestrator.cli import main
from scoring.table import file_sha256

TUTTI = str(Path(sys.executable).with_name("tutti"))

SMALL_SYSTEM = """
name: small
branch: {embedding_dim: 16, pooling: band_mean, training: {steps: 10, batch_size: 8, crop_seconds: 0.8,
  learning_rate: 1.0e-3, warmup_steps: 2}}
subsystems:
  mahalanobis: {softmax: {branch: {objective: {name: softmax}}, seeds: [0, 1]}}
  neighbours:
    softmax: {branch: {objective: {name: softmax}}, detector: {name: knn}}
"""


def tutti_here(*arguments: object) -> Result:
    """The command in this process, which spares the imports; for what starts no Ray."""
    return CliRunner().invoke(main, [str(a) for a in arguments])


def parsed(name: str, *words: str) -> dict[str, object]:
    parent = main.make_context("tutti", [name])  # without it, click would forget `-h` for the rest of the process
    return main.commands[name].make_context(name, [*words], parent=parent).params


def tutti(*arguments: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run([TUTTI, *map(str, arguments)], capture_output=True, text=True, timeout=timeout)


def free_port() -> int:
    """A port that nothing uses, below those that connections are given: one of these could be taken at any time."""
    while True:
        port = random.randint(20000, 32000)
        with suppress(OSError), socket.socket() as s:
            s.bind(("127.0.0.1", port))
            return port


def answers(port: int) -> bool:
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    return False


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder, by path within it: what its record holds."""
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in folder.rglob("*") if path.is_file()}
