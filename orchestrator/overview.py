"""What `tutti plan` shows: the branches, what is done, and a rough cost of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from branches.data.dataset import Dataset
from orchestrator.cost import ASSUMED_TFLOPS, core_gflops, petaflop
from orchestrator.ledger.folders import is_finished
from orchestrator.plan import make_plan
from orchestrator.preflight import with_resolved_files
from orchestrator.system import SystemSpec
from scoring.errors import InputError


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
        "cpu_hours": sum(petaflop(spec, clips) * 1e6 / core_gflops(spec) for spec in to_train) / 3600,
        "notes": list(dict.fromkeys(notes)),
    }


def _resolved(system: SystemSpec, notes: list[str]) -> SystemSpec:
    try:
        return with_resolved_files(system, fetch=False)
    except InputError as error:
        notes.append(f"{error}; until then branch ids are provisional and nothing is known to be done")
        return system
