"""What `tutti plan` shows: the branches, what is done, and a rough cost of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from branches.data.dataset import Dataset
from branches.spec import LOG_MEL, BranchSpec
from orchestrator.ledger.folders import is_finished
from orchestrator.plan import make_plan
from orchestrator.preflight import with_resolved_files
from orchestrator.system import SystemSpec
from scoring.errors import InputError

# Floating-point operations per parameter and patch: a forward pass has 2, gradients of the activations cost 2 more,
# and those of the weights another 2. Of `partial` the dearest case is assumed.
FLOP_PER_PARAMETER = {"frozen": 0, "head": 2, "partial": 6, "lora": 4, "full": 6}
PATCHES_PER_SECOND = 50  # 100 frames of 10 ms, 16 × 16 patches of 128 mels
PARAMETERS = {"tiny": 86_000, "small": 660_000, LOG_MEL: 0}
BASE_PARAMETERS = 90_000_000  # BEATs base, the size of every released checkpoint; taken where the file is not there
ASSUMED_TFLOPS = 100  # sustained in bf16 by a data-centre GPU at a fraction of its peak
CLIP_SECONDS = 10.0
# GFLOP/s of one CPU core for networks of up to so many parameters, twice `tiny` and `small`, measured while these and
# BEATs base train on 2 s: small ones mostly wait for memory.
CORE_GFLOPS = {172_000: 3, 1_320_000: 14, 10**12: 55}


def overview(systems: Sequence[SystemSpec], data: Path, out: Path | None) -> dict[str, Any]:
    """Branches with state and cost, as printed by `tutti plan --json`. Writes nothing and fetches nothing.

    A backbone that is not there is no error here: its branches are shown, with ids that are provisional.
    `done` is None where no run folder was named.
    """
    dataset = Dataset.read(data)
    clips = dataset.index.num_rows
    notes: list[str] = []
    plan = make_plan([_resolved(system, notes) for system in systems], dataset)
    branches = [
        {
            "branch_id": branch.branch_id,
            "config_id": branch.config_id,
            "name": branch.name,
            "systems": list(branch.systems),
            "seed": branch.spec.seed,
            "detectors": [scoring.name for scoring in branch.scorings],
            "done": None if out is None else is_finished(out, branch.branch_id, branch.tables),
            "pflop": petaflop(branch.spec, clips),
        }
        for branch in plan.branches
    ]
    to_train = [branch.spec for branch, row in zip(plan.branches, branches, strict=True) if not row["done"]]
    return {
        "branches": branches,
        "to_train": len(to_train),
        "gpu_hours": sum(petaflop(spec, clips) for spec in to_train) * 1e3 / ASSUMED_TFLOPS / 3600,
        "cpu_hours": sum(petaflop(spec, clips) * 1e6 / _core_gflops(spec) for spec in to_train) / 3600,
        "notes": list(dict.fromkeys(notes)),
    }


def _resolved(system: SystemSpec, notes: list[str]) -> SystemSpec:
    try:
        return with_resolved_files(system, fetch=False)
    except InputError as error:
        notes.append(f"{error}; until then branch ids are provisional and nothing is known to be done")
        return system


def _core_gflops(spec: BranchSpec) -> float:
    return next(speed for size, speed in CORE_GFLOPS.items() if _parameters(spec) <= size)


def _parameters(spec: BranchSpec) -> int:
    """Of the backbone; of a file on this machine by its size, since nothing is loaded here."""
    path = spec.backbone.path
    if path in PARAMETERS:
        return PARAMETERS[path]
    return Path(path).stat().st_size // 4 if Path(path).is_file() else BASE_PARAMETERS


def petaflop(spec: BranchSpec, clips: int) -> float:
    """Rough count of the 10^15 floating-point operations that a branch's training and embedding take."""
    training = spec.training
    passes = training.steps * training.batch_size * training.accumulation
    trained = FLOP_PER_PARAMETER[spec.strategy.name] * passes * training.crop_seconds
    embedded = 2 * clips * CLIP_SECONDS
    return _parameters(spec) * PATCHES_PER_SECOND * (trained + embedded) / 1e15


def duration(seconds: float) -> str:
    """`8 s`, `12 min`, `3 h 05 min`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
