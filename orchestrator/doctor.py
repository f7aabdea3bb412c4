"""What `tutti doctor` looks at: whether this machine and these places can carry a run. Nothing is changed."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from scoring.errors import InputError

# All other packages are imported by the check that needs them: one that is missing or broken is a finding.

DISTRIBUTION = "tutti-asd"
# Embeddings, tables and the weights of some ten fully fine-tuned branches of 90 M parameters.
ROOM_FOR_RESULTS = 5 * 2**30
RAY_SECONDS = 120.0
_RAY = """
import json, os, sys
from cluster.session import session
with session(sys.argv[1]):
    import ray
    print(json.dumps({"resources": ray.cluster_resources(), "auth": os.environ["RAY_AUTH_MODE"]}))
"""


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis; `remedy` is empty where nothing is wrong."""

    name: str
    state: Literal["ok", "warning", "problem"]
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Subject:
    """What is looked at.

    out: where a run would write; its file system is looked at, and nothing is made there
    """

    data: Path | None
    out: Path
    address: str
    tracking_uri: str | None


def diagnose(subject: Subject) -> Iterator[Check]:
    """All checks, each as soon as it is done."""
    parts: tuple[tuple[str, Callable[[Subject], Iterator[Check]]], ...] = (
        ("python", _python),
        ("packages", _packages),
        ("torch", _torch),
        ("gpu", _gpus),
        ("ray", _ray),
        ("mlflow", _store),
        ("data", _data),
        ("disk", _disk),
    )
    with ThreadPoolExecutor(1) as beside:  # Ray starts in a process of its own while torch is loaded here
        ray = beside.submit(_checked, "ray", _ray, subject)
        for name, part in parts:
            yield from ray.result() if part is _ray else _checked(name, part, subject)


def _checked(name: str, part: Callable[[Subject], Iterator[Check]], subject: Subject) -> list[Check]:
    """A part's checks, and what has kept it from going on as one of them."""
    checks: list[Check] = []
    try:
        checks.extend(part(subject))
    except InputError as error:
        text, _, remedy = str(error).rpartition("; ")
        checks.append(Check(name, "problem", text or remedy, remedy if text else ""))
    except Exception as error:  # a broken installation can fail in any way, and the other checks still count
        checks.append(Check(name, "problem", f"{type(error).__name__}: {error}", "reinstall tutti"))
    return checks


def _python(subject: Subject) -> Iterator[Check]:
    from packaging.specifiers import SpecifierSet

    version, wanted = platform.python_version(), _project()["requires-python"]
    fits = SpecifierSet(wanted).contains(version, prereleases=True)
    yield _verdict("python", fits, f"{version}, needs {wanted}", "make a new environment with such a Python")


def _project() -> dict[str, Any]:
    """`[project]` of pyproject.toml: in a checkout the file itself, since what is installed may be older."""
    path = Path(__file__).resolve().parent.parent / "pyproject.toml"
    if path.exists():
        project: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        return project
    needs = [text for text in metadata.requires(DISTRIBUTION) or () if "extra ==" not in text]
    return {"requires-python": metadata.metadata(DISTRIBUTION)["Requires-Python"], "dependencies": needs}


def _packages(subject: Subject) -> Iterator[Check]:
    """A line for each package that is missing or of another version, or one line for all."""
    from packaging.requirements import Requirement

    faults, fitting = [], []
    for requirement in map(Requirement, _project()["dependencies"]):
        name, wanted = requirement.name, requirement.specifier
        remedy = f"pip install '{requirement}'"
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            faults.append(Check(name, "problem", f"not installed, needs {wanted}", remedy))
            continue
        if wanted.contains(version, prereleases=True):
            fitting.append(f"{name} {version}")
        else:
            faults.append(Check(name, "problem", f"{version}, needs {wanted}", remedy))
    yield from faults or [Check("packages", "ok", ", ".join(fitting))]


def _torch(subject: Subject) -> Iterator[Check]:
    """Whether what branches need loads: torchaudio does not beside a torch that it was not built for."""
    from orchestrator.installation import faults

    missing = list(faults())
    yield from (Check(fault.module, "problem", fault.text, fault.remedy) for fault in missing)
    if not missing:
        import torch

        yield Check("torch", "ok", f"torch {torch.__version__}, CUDA {torch.version.cuda}")


def _gpus(subject: Subject) -> Iterator[Check]:
    import torch

    driver = _driver()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available and driver:
        reason = str(said[0].message).splitlines()[0] if said else f"torch is built for CUDA {torch.version.cuda}"
        yield Check("gpu", "problem", f"driver {driver}, but torch sees no GPU: {reason}", "update the NVIDIA driver")
    elif not available:
        remedy = "enough for the demo and --backbone tiny; BEATs wants a GPU"
        yield Check("gpu", "warning", f"none; branches would train on {os.cpu_count()} CPU cores", remedy)
    for device in range(torch.cuda.device_count() if available else 0):
        yield _gpu(device, driver)


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        versions = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return versions[0] if versions else None


def _gpu(device: int, driver: str | None) -> Check:
    import torch

    free, total = torch.cuda.mem_get_info(device)
    bfloat16 = torch.cuda.get_device_capability(device) >= (8, 0)
    text = f"{torch.cuda.get_device_name(device)}, driver {driver}, {_size(free)} of {_size(total)} free"
    text += f", bfloat16 {'in hardware' if bfloat16 else 'is slow'}"
    if free < total / 2:
        return Check(f"gpu {device}", "warning", text, "another process uses it; see nvidia-smi")
    if not bfloat16:
        return Check(f"gpu {device}", "warning", text, "an Ampere GPU or a newer one trains faster")
    return Check(f"gpu {device}", "ok", text)


def _ray(subject: Subject) -> Iterator[Check]:
    """A session in a process of its own: it may hang, and it changes the environment."""
    from cluster.session import START_REMEDY, check_address

    check_address(subject.address)
    remedy = "see `ray status` on its head node, and RAY_AUTH_MODE on both sides"
    if subject.address == "local":
        remedy = START_REMEDY
    command = [sys.executable, "-c", _RAY, subject.address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RAY_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        yield Check("ray", "problem", f"no session at {subject.address} within {RAY_SECONDS:.0f} s", remedy)
        return
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["the process died"])[-1]
        yield Check("ray", "problem", f"no session at {subject.address}: {last}", remedy)
        return
    session = json.loads(done.stdout.strip().splitlines()[-1])
    resources = ", ".join(f"{session['resources'].get(name, 0):g} {name}" for name in ("CPU", "GPU"))
    yield Check("ray", "ok", f"a session at {subject.address} has {resources}; authentication: {session['auth']}")


def _store(subject: Subject) -> Iterator[Check]:
    from orchestrator.tracking.store import database_of

    uri = subject.tracking_uri
    path = subject.out / "mlflow.db" if uri is None else database_of(uri)
    if (uri is None or uri.startswith("sqlite:///")) and not path.exists():
        yield Check("mlflow", "ok", f"{path} will be made by the first run")
        return
    from orchestrator.tracking.tracker import find_tracker

    find_tracker(uri, subject.out, "Default")
    yield Check("mlflow", "ok", f"the store at {uri or path} answers")


def _data(subject: Subject) -> Iterator[Check]:
    from branches.data.dataset import counts, read_index

    if subject.data is None:
        yield Check("data", "warning", "not looked at", "name the data set with --data")
        return
    index = read_index(subject.data)
    machines = counts(index)
    hidden = [name for name, kinds in machines.items() if any(kind.endswith("hidden hidden") for kind in kinds)]
    text = f"{index.num_rows} clips of {len(machines)} machines, the test labels of {len(hidden)} hidden"
    yield Check("data", "ok", f"{subject.data}: {text}; `tutti data check` reads every clip")


def _disk(subject: Subject) -> Iterator[Check]:
    """Room for the decoded clips, about as large as 16-bit recordings are, and for what a run keeps."""
    place = next(folder for folder in (subject.out.resolve(), *subject.out.resolve().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    cache = max(0, _audio_bytes(subject.data) - _size_of(subject.out / "cache"))
    text = f"{_size(free)} free at {place}"
    if subject.data is not None:
        text += f"; the audio cache needs about {_size(cache)} more, up to twice that with the channel cancel"
    if not os.access(place, os.W_OK):
        yield Check("disk", "problem", f"{place} cannot be written to", "give another --out")
    elif free < cache:
        yield Check("disk", "problem", text, "make room or give another --out")
    elif free < cache + ROOM_FOR_RESULTS:
        yield Check("disk", "warning", text, f"weights and embeddings of ten branches take {_size(ROOM_FOR_RESULTS)}")
    else:
        yield Check("disk", "ok", text)


def _audio_bytes(data: Path | None) -> int:
    """Size of the data set's recordings, noise included; what is wrong with it is another check's business."""
    folders = ("train", "test", "source_test", "target_test", "supplemental")
    recordings = [path for folder in folders for path in data.glob(f"*/{folder}/*.wav")] if data is not None else []
    return sum(path.stat().st_size for path in recordings)


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _verdict(name: str, fits: bool, text: str, remedy: str) -> Check:
    return Check(name, "ok", text) if fits else Check(name, "problem", text, remedy)
