"""Whether this machine and these places can carry a run: what `tutti doctor` prints. Nothing is changed.

Packages are imported by the check that needs them: one that does not load is to be named, not met.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.training.process import check_installation
from scoring.errors import InputError, counted

# Embeddings, tables and the weights of some ten fully fine-tuned branches of 90 M parameters.
ROOM_FOR_RESULTS = 5 * 2**30
RAY_SECONDS = 120.0
_RAY = """
import os, sys
from cluster.session import session
with session(sys.argv[1]):
    import ray
    has = ", ".join(f"{ray.cluster_resources().get(name, 0):g} {name}" for name in ("CPU", "GPU"))
print(f"a session at {sys.argv[1]} has {has}; authentication: {os.environ['RAY_AUTH_MODE']}")
"""


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis; `remedy` is empty where nothing is wrong."""

    name: str
    state: Literal["ok", "warning", "problem"]
    text: str
    remedy: str = ""


def diagnose(data: Path | None, out: Path, address: str, tracking_uri: str | None) -> Iterator[Check]:
    """All checks, each as soon as it is done.

    out: where a run would write; its file system is looked at, and nothing is made there
    """
    parts = {
        "packages": _packages(),
        "gpu": _gpus(),
        "ray": _ray(address),
        "mlflow": _store(out, tracking_uri),
        **({"data": _data(data)} if data else {}),
        "disk": _disk(data, out),
    }
    for name, part in parts.items():
        try:
            yield from part
        except Exception as error:  # a broken installation can fail in any way, and the other checks still count
            fault = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}; reinstall tutti"
            text, _, remedy = fault.rpartition("; ")
            yield Check(name, "problem", text or remedy, remedy if text else "")


def _packages() -> Iterator[Check]:
    """What `pip check` says: of tutti's own requirements it is a problem, of other packages' it may not matter."""
    pip = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    said = (pip.stdout or pip.stderr).strip()
    for line in said.splitlines() if pip.returncode else []:
        ours = line.startswith("tutti-asd ")
        yield Check("packages", "problem" if ours else "warning", line, "pip install what it names")
    check_installation()
    if pip.returncode == 0:
        yield Check("packages", "ok", f"Python {platform.python_version()}; {said}")


def _gpus() -> Iterator[Check]:
    import torch

    yield Check("torch", "ok", f"torch {torch.__version__}, CUDA {torch.version.cuda}")
    if not torch.cuda.is_available():  # of a driver that torch cannot use, it warns itself
        text = f"none; branches would train on {os.cpu_count()} CPU cores"
        yield Check(
            "gpu", "warning", text, "enough for the demo; BEATs wants a GPU, and a torch that is built for CUDA"
        )
    for device in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(device)
        bfloat16 = "in hardware" if torch.cuda.get_device_capability(device) >= (8, 0) else "is slow"
        text = f"{torch.cuda.get_device_name(device)}, {_size(free)} of {_size(total)} free, bfloat16 {bfloat16}"
        yield Check(f"gpu {device}", "ok", text)


def _ray(address: str) -> Iterator[Check]:
    """A session in a process of its own: it may hang, and it changes the environment."""
    command = [sys.executable, "-c", _RAY, address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RAY_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        remedy = "see `ray status` on its head node, and RAY_AUTH_MODE on both sides"
        raise InputError(f"no session at {address} within {RAY_SECONDS:.0f} s; {remedy}") from None
    last = ((done.stderr if done.returncode else done.stdout).strip() or "its process died").splitlines()[-1]
    if done.returncode:
        raise InputError(last.removeprefix("scoring.errors.InputError: "))
    yield Check("ray", "ok", last)


def _store(out: Path, uri: str | None) -> Iterator[Check]:
    from orchestrator.tracking.store import database_of
    from orchestrator.tracking.tracker import find_tracker

    database = out / "mlflow.db" if uri is None else database_of(uri)
    if (uri is None or uri.startswith("sqlite:///")) and not database.exists():
        yield Check("mlflow", "ok", f"{database} will be made by the first run")
        return
    find_tracker(uri, out, "Default")
    yield Check("mlflow", "ok", f"the store at {uri or database} answers")


def _data(data: Path) -> Iterator[Check]:
    from branches.data.dataset import read_index

    machines = read_index(data)["machine"]
    text = f"{data}: {counted(len(machines), 'clip')} of {counted(len(machines.unique()), 'machine')}"
    yield Check("data", "ok", f"{text}; `tutti data check` reads every clip")


def _disk(data: Path | None, out: Path) -> Iterator[Check]:
    place = next(folder for folder in (out.resolve(), *out.resolve().parents) if folder.exists())
    if not os.access(place, os.W_OK):
        raise InputError(f"{place} cannot be written to; give another --out")
    free = shutil.disk_usage(place).free
    clips = (
        sum(path.stat().st_size for path in data.rglob("*.wav") if path.is_file()) if data else 0
    )  # decoded about as large
    takes = f"decoded clips take about {_size(clips)}, ten branches {_size(ROOM_FOR_RESULTS)}"
    scarce = free < clips + ROOM_FOR_RESULTS
    text = f"{_size(free)} free at {place}; {takes}"
    yield Check("disk", "warning" if scarce else "ok", text, "make room or give another --out" if scarce else "")


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
