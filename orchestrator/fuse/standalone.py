"""`tutti fuse`: fusion of the score tables in a folder, and the weights of a result on other tables."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from cluster.session import session
from fusion.hierarchy import Tree, averaging, tables_of
from fusion.on_ray import run_on_ray
from fusion.scales import Scale
from fusion.search import FUSION_VERSION, apply_weights
from fusion.tasks import run_here
from orchestrator.fuse.result import described_table, finished_result, fuse_into, read_result, write_result
from orchestrator.fuse.sources import LOOSE, is_run, read_sources
from orchestrator.fuse.tables import Calibrated
from orchestrator.ledger.folders import FUSED
from orchestrator.plan import digest
from scoring.detectors import SCORING_VERSION
from scoring.elsewhere import table_path, table_sha256
from scoring.errors import InputError, counted
from scoring.table import is_transductive, write_table

log = logging.getLogger(__name__)

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Delivered(BaseModel):
    """Of what a result delivers, what other tables need: `weights` are by sub-system and configuration."""

    table_weights: dict[str, Weight]
    weights: dict[str, dict[str, Weight]]
    scale: Scale


def fuse_tables(
    paths: Sequence[Path],
    out: Path,
    system: str | None = None,
    backbone: str | None = None,
    transductive: bool = False,
    address: str | None = None,
) -> dict[str, Any]:
    """Fuse tables into `out`; returns what stands in `result.json`, also if it did already.

    Parameters
    ----------
    paths, system, backbone: see `read_sources`
    transductive: normalise by the test clips, see `scoring.calibration.transductive_normalisation`
    address: of the Ray cluster that searches; by default one core of this process does

    Raises InputError if the tables cannot be fused.
    """
    source = read_sources(paths, system, backbone)
    tree, used = source.tree, {name: source.files[name] for name in tables_of(source.tree)}
    checksums = {name: table_sha256(path) for name, path in used.items()}
    fusion_id = digest([tree, checksums, transductive, SCORING_VERSION, FUSION_VERSION])
    if (finished := finished_result(out, fusion_id)) is not None:
        return finished
    log.info("fusing %s", counted(len(used), "score table"))
    tables, name = Calibrated(used, transductive), source.system or LOOSE
    about = {
        "system": name,
        "branches": [described_table(table, table, "", tables[table]) for table in used],
        "tree": tree,
        "sources": {table: str(path) for table, path in used.items()},
    }
    metadata = {"system": name, "fusion_id": fusion_id}
    with session(address) if address else nullcontext():
        return fuse_into(out, fusion_id, tables, tree, metadata, about, run_on_ray if address else run_here)


def apply_result(
    path: Path,
    paths: Sequence[Path],
    out: Path,
    system: str | None = None,
    backbone: str | None = None,
    transductive: bool = False,
) -> dict[str, Any]:
    """Fuse the tables at `paths` by the weights of another fusion's result: no label is read, nothing is estimated.

    system: its tables are taken, whatever they are called; without it, those of the names that have weights

    Raises InputError if the result or the tables cannot be used, or the result lies in `out`.
    """
    if out.resolve() == (path if path.is_dir() else path.parent).resolve():
        raise InputError(f"{out}: the weights' own fusion lies there; give another --out")
    delivered = _read_delivered(path)
    weights, files = delivered.table_weights, dict[str, Path]()
    if system is None and len(paths) == 1 and not is_run(paths[0]):
        files = {name: table_path(paths[0], name) for name in weights}  # of its index, if any, others may be lost
    else:
        source = read_sources(paths, system, backbone)
        files = dict(source.files)
        if system is not None:
            weights = _by_table(path, delivered.weights, source.tree)
    used = {name: weight for name, weight in weights.items() if weight > 0}
    if absent := [name for name in used if name not in files or not files[name].exists()]:
        raise InputError(
            f"{path} gives a weight to {absent[0]}, which is not there; {counted(len(absent), 'such table')} absent"
        )
    tables = Calibrated({name: files[name] for name in used}, transductive)
    fused = apply_weights(tables, used, {"weights": str(path)}, delivered.scale)
    out.mkdir(parents=True, exist_ok=True)
    result = {
        "weights_from": str(path.resolve()),
        "transductive": is_transductive(fused),
        "scale": delivered.scale,
        "table_weights": used,
        "rows": fused.num_rows,
        "sha256": write_table(fused, out / FUSED),
    }
    return write_result(out, result)


def _by_table(path: Path, weights: Mapping[str, Mapping[str, float]], tree: Tree) -> dict[str, float]:
    """Weights of a tree's tables from those of its configurations: on other data the same branches have other names."""
    if {s: c.keys() for s, c in weights.items()} != {s: c.keys() for s, c in tree.items()}:
        raise InputError(f"{path}: its weights are not of this system's configurations")
    names = tables_of(tree)
    by_configuration = np.array([weights[s][c] for s, configurations in tree.items() for c in configurations])
    return dict(zip(names, (by_configuration @ averaging(tree, names)).tolist(), strict=True))


def _read_delivered(path: Path) -> Delivered:
    """A person may have changed the file."""
    try:
        result = read_result(path)
        delivered = Delivered.model_validate(result["delivered"])
        called = {branch["table"]: branch["branch"] for branch in result["branches"]}  # a run's own have ids
        by_name = {called.get(name, name): weight for name, weight in delivered.table_weights.items()}
        delivered = delivered.model_copy(update={"table_weights": by_name})
        usable = any(delivered.table_weights.values())
    except ValidationError:
        usable = False
    if not usable:
        raise InputError(f"{path}: weights are finite numbers of at least 0, not all 0; the scale is as it was written")
    return delivered
