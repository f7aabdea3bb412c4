"""What `tutti plan` shows: the score tables and trainings, what is done, and a rough cost of the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from branches.audio import Header, read_header
from branches.backbones import BACKBONES, cached
from branches.data.dataset import Dataset
from branches.spec import GeneratorSpec
from orchestrator.cost import ASSUMED_TFLOPS, core_gflops, duration, generator_petaflop, petaflop, stored_bytes
from orchestrator.ledger.folders import DIGESTS, is_finished
from orchestrator.ledger.storage import LAST
from orchestrator.plan import Branch, make_plan
from orchestrator.preflight import with_resolved_files
from orchestrator.system import SystemSpec
from orchestrator.training.generated import nothing_rare, set_id
from scoring.errors import InputError

LONG = 3600.0  # seconds of a core, from which on a generator is warned of


def overview(systems: Sequence[SystemSpec], data: Path, out: Path | None) -> dict[str, Any]:
    """Tables and branches with state and cost, as printed by `tutti plan --json`. Writes nothing and fetches nothing.

    A backbone that is not there is no error here: its branches are shown, with ids that are provisional.
    `done` is None where no run folder was named.
    """
    dataset = Dataset.read(data, out and out / DIGESTS)
    clips = dataset.index.num_rows
    notes: list[str] = []
    plan = make_plan([_resolved(system, notes) for system in systems], dataset)
    tables = {branch.branch_id: _tables(branch, out) for branch in plan.branches}
    branches = [
        {
            "branch_id": branch.branch_id,
            "config_id": branch.config_id,
            "name": branch.name,
            "systems": list(branch.systems),
            "seed": branch.spec.seed,
            "detectors": list(dict.fromkeys(scoring.detector.name for scoring in branch.scorings)),
            "done": None if out is None else all(table["done"] for table in tables[branch.branch_id]),
            "pflop": petaflop(branch.spec, clips),
            "trained": not branch.spec.is_frozen,
        }
        for branch in plan.branches
    ]
    missing = [branch for branch, row in zip(plan.branches, branches, strict=True) if not row["done"]]
    notes += _to_fetch(missing)
    generated = _generated(missing, dataset, out)
    costs = [(branch.spec, petaflop(branch.spec, clips)) for branch in missing] + [*generated.values()]
    core_seconds = [pflop * 1e6 / core_gflops(spec) for spec, pflop in costs]
    if any(pflop * 1e6 / core_gflops(spec) > LONG for spec, pflop in generated.values()):
        seconds = sum(core_seconds[len(missing) :])
        notes.append(
            f"the generator of clips takes about {duration(seconds)} of a CPU core: its settings are for a GPU; "
            "docs/generation.md has smaller ones"
        )
    return {
        "branches": branches,
        "tables": [table for of_branch in tables.values() for table in of_branch],
        "generated": [{"id": name, "steps": spec.steps, "pflop": pflop} for name, (spec, pflop) in generated.items()],
        "to_train": len(missing),
        "gpu_hours": sum(pflop for _, pflop in costs) * 1e3 / ASSUMED_TFLOPS / 3600,
        "cpu_hours": sum(core_seconds) / 3600,
        "disk_gb": _disk_bytes(missing, dataset) / 1e9,
        "notes": list(dict.fromkeys([*notes, *_repeated(plan.branches, dataset)])),
    }


def _disk_bytes(branches: Sequence[Branch], dataset: Dataset) -> float:
    """What a run adds to its folder: clips decoded to 16 bit, the cancelled channel as large again, and branches."""
    if not branches:
        return 0.0
    decoded = sum((dataset.root / path).stat().st_size for path in dataset.index["path"].to_pylist())
    channels = 2 if any(branch.spec.channel == "cancel" for branch in branches) else 1
    stored = (stored_bytes(branch.spec, branch.embeddings, dataset.index.num_rows) for branch in branches)
    return channels * decoded + sum(stored)


def _resolved(system: SystemSpec, notes: list[str]) -> SystemSpec:
    try:
        return with_resolved_files(system, fetch=False)
    except InputError as error:
        notes.append(f"{error}; until then branch ids are provisional and nothing is known to be done")
        return system


def _to_fetch(branches: Sequence[Branch]) -> list[str]:
    """What to say of checkpoints that are not in the cache, but whose digest is known."""
    names = {branch.spec.backbone.path for branch in branches if branch.spec.backbone.sha256} & BACKBONES.keys()
    missing = [BACKBONES[name] for name in sorted(names) if not cached(name).exists()]
    return [f"{b.name} is not in the cache; a run fetches it, {b.size / 1e6:.0f} MB" for b in missing]


def _tables(branch: Branch, out: Path | None) -> list[dict[str, Any]]:
    """A branch's score tables, each under every name that a system gives it."""
    rows = []
    for scoring in branch.scorings:
        table = {scoring.name: branch.tables[scoring.name]}
        done = None if out is None else is_finished(out, branch.branch_id, table)
        uses = [use for use in branch.uses if use.scoring == scoring]
        uses = [use for use in uses if use.system] or uses  # the baseline may be a system's, too
        for name in dict.fromkeys(use.name for use in uses):
            systems = [use.system for use in uses if use.name == name and use.system]
            rows.append({"name": name, "systems": systems, "branch_id": branch.branch_id, "done": done})
    return rows


def _generated(
    branches: Sequence[Branch], dataset: Dataset, out: Path | None
) -> dict[str, tuple[GeneratorSpec, float]]:
    """Generators of the sets that branches want and that are not there, and their PFLOP, by what identifies a set."""
    found = {}
    for branch in branches:
        generator, name = branch.spec.augmentation.generated, set_id(branch.spec, dataset.training_fingerprint())
        there = out is not None and (out / "generated" / name / LAST).exists()
        if generator is not None and not there and not nothing_rare([branch], dataset.index):
            found[name] = generator, generator_petaflop(generator)
    return found


def _repeated(branches: Sequence[Branch], dataset: Dataset) -> list[str]:
    """What to say of configurations on the channel `cancel` where clips have one channel, on which that is `near`."""
    cancelled = [branch for branch in branches if branch.spec.channel == "cancel"]
    if not cancelled or any(header.channels > 1 for header in _first_headers(dataset)):
        return []
    near = {(b.spec, use.scoring): use.name for b in branches for use in b.uses}
    pairs = {}
    for branch in cancelled:
        spec = branch.spec.model_copy(update={"channel": "near"})
        for use in branch.uses:
            if other := near.get((spec, use.scoring)):
                pairs[use.name.rpartition("/")[0]] = other.rpartition("/")[0]
    repeated = ", ".join(f"{name} repeats {other}" for name, other in pairs.items())
    return [f"clips have one channel, where cancel is the same as near{': ' if repeated else ''}{repeated}"]


def _first_headers(dataset: Dataset) -> Iterator[Header]:
    """Headers of a clip of each machine."""
    columns = (dataset.index[column].to_pylist() for column in ("machine", "path"))
    for path in dict(zip(*columns, strict=True)).values():
        with suppress(InputError):
            yield read_header(dataset.root / path)
