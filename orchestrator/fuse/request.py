"""`tutti fuse`: fusion alone, of score tables in a folder or an MLflow store."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion.hierarchy import Tree, tables_of
from fusion.scales import is_scale
from fusion.search import FUSION_VERSION, apply_weights
from fusion.tasks import Runner, run_here
from orchestrator.fuse.inputs import TableFiles, from_index, from_store, of_system
from orchestrator.fuse.result import described_table, finished_result, fuse_into, write_json
from orchestrator.ledger.folders import BRANCHES, FUSED, REPORT, RESULT
from orchestrator.plan import digest
from orchestrator.system import load_system
from scoring.detectors import SCORING_VERSION
from scoring.elsewhere import table_path, table_sha256
from scoring.errors import InputError
from scoring.table import is_transductive, write_table

log = logging.getLogger(__name__)

TRANSDUCTIVE_WARNING = (
    "warning: scores are normalised by statistics of the test clips (transductive), which the challenge's rules "
    "forbid; every file that is written carries the mark"
)


ByConfiguration = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Request:
    """What `tutti fuse` was asked for; see its options."""

    out: Path
    system: str | None = None
    backbone: str | None = None
    tables: Path | None = None
    tracking_uri: str | None = None
    experiment: str | None = None
    run: str | None = None
    weights: Path | None = None
    transductive: bool = False
    address: str | None = None


def fuse_tables(request: Request) -> dict[str, Any]:
    """Fuse what the request names into its folder; returns what stands in `result.json`, also if it did already.

    Raises
    ------
    InputError
        If the request contradicts itself, or the tables cannot be fused.
    """
    if request.weights is not None:
        return _apply(request, request.weights)
    tree, files = _source(request)
    used = {name: files[name] for name in tables_of(tree)}
    checksums = {name: table_sha256(path) for name, path in used.items()}
    fusion_id = digest([tree, checksums, request.transductive, SCORING_VERSION, FUSION_VERSION])
    result = finished_result(request.out, fusion_id)
    if result is None:
        log.info("fusing %d score tables", len(used))
        tables = TableFiles(used, request.transductive)
        name = request.system or "tables"
        about = {
            "system": name,
            "branches": [described_table(table, table, "", tables[table]) for table in used],
            "tree": tree,
            "sources": {table: str(path) for table, path in used.items()},
        }
        metadata = {"system": name, "fusion_id": fusion_id}
        (request.out / REPORT).unlink(missing_ok=True)
        with _runner(request.address) as runner:
            result, _ = fuse_into(_writable(request.out), fusion_id, tables, tree, metadata, about, runner)
    _warn(result)
    return result


def _source(request: Request) -> tuple[Tree, Mapping[str, Path]]:
    if (request.tables is None) == (request.tracking_uri is None):
        raise InputError("give either --tables DIR or --tracking-uri URI")
    if request.tables is not None and (request.experiment or request.run):
        raise InputError("--experiment and --run belong to --tracking-uri; a folder's tables are all taken")
    system = load_system(request.system, request.backbone) if request.system else None
    if request.tracking_uri is not None:
        if request.experiment is None:
            raise InputError("--tracking-uri needs --experiment NAME, as the MLflow UI shows it")
        return from_store(
            request.tracking_uri, request.experiment, request.run, system, _writable(request.out) / "tables"
        )
    assert request.tables is not None
    if not request.tables.is_dir():
        raise InputError(f"{request.tables}: no such folder")
    if system is None:
        return from_index(request.tables)
    ledger = request.tables / BRANCHES  # of a run, which has copies of its tables elsewhere, for MLflow
    return of_system(system, sorted((ledger if ledger.is_dir() else request.tables).rglob("*.parquet")))


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot write there ({error.strerror}); give another --out") from None
    return folder


@contextmanager
def _runner(address: str | None) -> Iterator[Runner]:
    """One core of this process, or the Ray cluster at an address."""
    if address is None:
        yield run_here
        return
    from cluster.session import session

    with session(address):
        from fusion.on_ray import run_on_ray  # imports ray, and that only after the session has set it up

        yield run_on_ray


def _apply(request: Request, path: Path) -> dict[str, Any]:
    """The weights of another fusion on these tables: no label is read, and nothing is estimated."""
    if request.out.resolve() == path.parent.resolve():
        raise InputError(f"{request.out}: the weights' own fusion lies there; give another --out")
    weights, by_configuration, scale = _read_weights(path)
    tree, files = _places(request, weights)
    if request.system is not None and tree is not None:
        weights = _by_table(path, by_configuration, tree)
    used = {name: files[name] for name, weight in weights.items() if weight > 0 and name in files}
    missing = [name for name, weight in weights.items() if weight > 0 and (name not in used or not used[name].exists())]
    if missing:
        raise InputError(
            f"{path} gives a weight to {missing[0]}, which is not there; {len(missing)} such tables are absent"
        )
    fused = apply_weights(TableFiles(used, request.transductive), weights, {"weights": str(path)}, scale)
    checksum = write_table(fused, _writable(request.out) / FUSED)
    result = {
        "weights_from": str(path.resolve()),
        "transductive": is_transductive(fused),
        "scale": scale,
        "table_weights": {name: weights[name] for name in used},
        "rows": fused.num_rows,
        "sha256": checksum,
    }
    (request.out / REPORT).unlink(missing_ok=True)
    write_json(request.out / RESULT, result)
    _warn(result)
    return result


def _places(request: Request, names: Iterable[str]) -> tuple[Tree | None, Mapping[str, Path]]:
    """Tables under the names that they had when weights were chosen; of a SYSTEM by its tree."""
    if request.tables is not None and request.system is None and request.tracking_uri is None:
        return None, {name: table_path(request.tables, name) for name in names}
    return _source(request)


def _by_table(path: Path, by_configuration: ByConfiguration, tree: Tree) -> dict[str, float]:
    """Weights of a tree's tables from those of its configurations: on other data the same branches have other names."""
    if {s: set(c) for s, c in by_configuration.items()} != {s: set(c) for s, c in tree.items()}:
        raise InputError(f"{path}: its weights are not of this system's configurations")
    weights: dict[str, float] = {}
    for subsystem, configurations in tree.items():
        for name, tables in configurations.items():
            for table in tables:
                weights[table] = weights.get(table, 0.0) + by_configuration[subsystem][name] / len(tables)
    return weights


def _read_weights(path: Path) -> tuple[dict[str, float], ByConfiguration, str]:
    """Weights by table, the same by sub-system and configuration, and the scale of the scores they apply to."""
    try:
        delivered = json.loads(path.read_text(encoding="utf-8"))["delivered"]
        weights, scale = dict(delivered["table_weights"]), delivered["scale"]
        by_configuration = {subsystem: dict(c) for subsystem, c in dict(delivered.get("weights", {})).items()}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: not a result of `tutti fuse` or `tutti run`; give its result.json") from None
    numbers: list[object] = [*weights.values(), *(w for c in by_configuration.values() for w in c.values())]
    usable = all(isinstance(w, (int, float)) and 0 <= w < float("inf") for w in numbers) and any(weights.values())
    if not is_scale(scale) or not usable:
        raise InputError(
            f"{path}: weights are numbers of at least 0, finite and not all 0; scale is as `tutti fuse` wrote it"
        )
    return weights, by_configuration, scale


def _warn(result: Mapping[str, Any]) -> None:
    if result["transductive"]:
        log.warning(TRANSDUCTIVE_WARNING)
