"""One system's fusion: from its branches' tables to weights, fused table and result, unless that is done already."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from fusion.hierarchy import Tree, tables_of
from fusion.search import Fusion, Runner, fuse
from orchestrator.ledger import Record, checksums, write_record
from orchestrator.plan import Plan, code_version, digest, table_names
from orchestrator.spec import SystemSpec
from orchestrator.worker import flat_metrics
from scoring.metrics import Metrics, has_labels, official_metrics
from scoring.table import file_sha256, write_table

FUSED = "fused.parquet"
RESULT = "result.json"

log = logging.getLogger(__name__)


def fused_system(
    system: SystemSpec,
    dataset: str,
    plan: Plan,
    tables: Mapping[str, pa.Table],
    folder: Path,
    runner: Runner,
) -> dict[str, Any]:
    """Fuse a system into `folder`, with a record for MLflow; what is there already, from the same tables, is kept.

    Returns the result that stands in `result.json`.
    """
    tree = plan.trees[system.name]
    own = {name: tables[name] for name in tables_of(tree)}
    tags = {"role": "fusion", "system": system.name, "fusion_id": _fusion_id(tree, own)}
    known = _finished_result(folder, tags["fusion_id"])
    if known is not None:
        return known
    log.info("%s: fusing %d score tables", system.name, len(own))
    metadata = {"system": system.name, "fusion_id": tags["fusion_id"], "spec": system.model_dump_json()}
    fusion = fuse(own, tree, metadata, runner=runner)
    folder.mkdir(parents=True, exist_ok=True)
    checksum = write_table(fusion.table, folder / FUSED)
    result = {
        **_result(system, plan, own, fusion),
        "dataset": dataset,
        "missing": [b.name for b in plan.branches if system.name in b.systems and not own.keys() & {*table_names(b)}],
        "fusion_id": tags["fusion_id"],
        "sha256": checksum,
    }
    _write_json(folder / RESULT, result)
    weights = {f"weight.{s}.{c}": w for s, cs in fusion.configuration_weights.items() for c, w in cs.items()}
    figures = flat_metrics(fusion.choice.in_sample, "in_sample.") | flat_metrics(fusion.lomo, "lomo.")
    record = Record(
        name=f"{system.name} fused",
        identity=tags,
        tags={"method": fusion.delivered},
        metrics={**figures, **weights},
        files=checksums(folder),
    )
    write_record(folder, record)
    return result


def _fusion_id(tree: Tree, tables: Mapping[str, pa.Table]) -> str:
    """Hash of all that the fusion depends on."""
    scores = {
        name: hashlib.sha256(table["calibrated"].to_numpy().tobytes()).hexdigest() for name, table in tables.items()
    }
    return digest([tree, scores, code_version("fusion", "scoring", "orchestrator")])


def _finished_result(folder: Path, fusion_id: str) -> dict[str, Any] | None:
    try:
        result: dict[str, Any] = json.loads((folder / RESULT).read_text())
        intact = result["fusion_id"] == fusion_id and result["sha256"] == file_sha256(folder / FUSED)
    except (OSError, ValueError, KeyError):
        return None
    return result if intact else None


def _result(system: SystemSpec, plan: Plan, tables: Mapping[str, pa.Table], fusion: Fusion) -> dict[str, Any]:
    names = {branch.branch_id: branch.name for branch in plan.branches}
    return {
        "system": system.name,
        "description": system.description,
        "delivered": {
            "method": fusion.delivered,
            "why": fusion.why,
            "weights": fusion.configuration_weights,
            "table_weights": fusion.choice.weights,
            "in_sample": _omega(fusion.choice.in_sample),
            "lomo": _omega(fusion.lomo),
        },
        "methods": {
            name: {"in_sample": _omega(choice.in_sample), "lomo": _omega(choice.lomo)}
            for name, choice in fusion.methods.items()
        },
        "machines": {
            "in_sample": _machines(fusion.choice.in_sample),
            "lomo": _machines(fusion.lomo),
        },
        "branches": [
            {
                "table": name,
                "branch": names[name.partition("/")[0]],
                "detector": name.partition("/")[2],
                **_metrics(table),
            }
            for name, table in tables.items()
        ],
        "spec": system.model_dump(),
    }


def _omega(metrics: Metrics | None) -> float | None:
    return metrics.omega if metrics else None


def _machines(metrics: Metrics | None) -> dict[str, Any] | None:
    return {name: asdict(values) for name, values in metrics.machines.items()} if metrics else None


def _metrics(table: pa.Table) -> dict[str, Any]:
    return official_metrics(table).as_dict() if has_labels(table) else {"omega": None, "machines": {}}


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1))
    os.replace(temporary, path)
