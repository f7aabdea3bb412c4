"""Whether this machine and these places can carry a run: what `tutti doctor` prints. Nothing is changed.

Packages are imported by the check that needs them: one that does not load is to be named, not met.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from orchestrator.installation import Check, unloadable
from scoring.errors import InputError

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


def diagnose(data: Path | None, out: Path, address: str, tracking_uri: str | None) -> Iterator[Check]:
    """All checks, each as soon as it is done.

    out: where a run would write; its file system is looked at, and nothing is made there
    """
    parts = {
        "packages": _versions(),
        "installation": unloadable(),
        "gpu": _gpus(),
        "ray": _ray(address),
        "mlflow": _store(out, tracking_uri),
        "data": _data(data),
        "disk": _disk(data, out),
    }
    for name, part in parts.items():
        try:
            yield from part
        except InputError as error:
            text, _, remedy = str(error).rpartition("; ")
            yield Check(name, "problem", text or remedy, remedy if text else "")
        except Exception as error:  # a broken installation can fail in any way, and the other checks still count
            yield Check(name, "problem", f"{type(error).__name__}: {error}", "reinstall tutti")


def _fine(name: str, text: str, but: str = "") -> Check:
    """What a run can do with; `but` is what could be better."""
    return Check(name, "warning" if but else "ok", text, but)


def _versions() -> Iterator[Check]:
    """What `pip check` says: of tutti's own requirements it is a problem, of other packages' it may not matter."""
    pip = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    said = (pip.stdout or pip.stderr).strip()
    if pip.returncode == 0:
        yield _fine("packages", f"Python {platform.python_version()}; {said}")
        return
    for line in said.splitlines():
        ours = line.startswith("tutti-asd ")
        yield Check("packages", "problem" if ours else "warning", line, "pip install what it names")


def _gpus() -> Iterator[Check]:
    import torch

    yield _fine("torch", f"torch {torch.__version__}, CUDA {torch.version.cuda}")
    with warnings.catch_warnings(record=True) as said:  # torch does where there is a driver that it cannot use
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if said and not count:
        raise InputError(f"torch sees no GPU: {str(said[0].message).splitlines()[0]}; update the NVIDIA driver")
    if not count:
        better = "enough for the demo; BEATs wants a GPU, and a torch that is built for CUDA"
        yield _fine("gpu", f"none; branches would train on {os.cpu_count()} CPU cores", better)
    for device in range(count):
        free, total = torch.cuda.mem_get_info(device)
        bfloat16 = "in hardware" if torch.cuda.get_device_capability(device) >= (8, 0) else "is slow"
        text = f"{torch.cuda.get_device_name(device)}, {_size(free)} of {_size(total)} free, bfloat16 {bfloat16}"
        yield _fine(f"gpu {device}", text, "another process uses it, see nvidia-smi" if free < total / 2 else "")


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
    yield _fine("ray", last)


def _store(out: Path, uri: str | None) -> Iterator[Check]:
    from orchestrator.tracking.store import database_of
    from orchestrator.tracking.tracker import find_tracker

    database = out / "mlflow.db" if uri is None else database_of(uri)
    if (uri is None or uri.startswith("sqlite:///")) and not database.exists():
        yield _fine("mlflow", f"{database} will be made by the first run")
        return
    find_tracker(uri, out, "Default")
    yield _fine("mlflow", f"the store at {uri or database} answers")


def _data(data: Path | None) -> Iterator[Check]:
    from branches.data.dataset import read_index

    if data is None:
        yield _fine("data", "not looked at", "name the data set with --data")
        return
    machines = read_index(data)["machine"]
    text = f"{data}: {len(machines)} clips of {len(machines.unique())} machines"
    yield _fine("data", f"{text}; `tutti data check` reads every clip")


def _disk(data: Path | None, out: Path) -> Iterator[Check]:
    """Room for the decoded clips, about as large as 16-bit recordings are, and for what a run keeps."""
    place = next(folder for folder in (out.resolve(), *out.resolve().parents) if folder.exists())
    if not os.access(place, os.W_OK):
        raise InputError(f"{place} cannot be written to; give another --out")
    free = shutil.disk_usage(place).free
    cache = max(0, _bytes(data, "*.wav") - _bytes(out / "cache", "*")) if data is not None else 0
    text = f"{_size(free)} free at {place}" + (f", decoded clips need about {_size(cache)} more" if cache else "")
    if free < cache:
        raise InputError(f"{text}; make room or give another --out")
    better = f"the channel cancel needs as much again, ten branches up to {_size(ROOM_FOR_RESULTS)}"
    yield _fine("disk", text, better if free < 2 * cache + ROOM_FOR_RESULTS else "")


def _bytes(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file())


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
