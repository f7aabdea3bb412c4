"""A fusion into its folder: score tables → weights, `fused.parquet` and `result.json`, unless that is done already."""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from branches.data.dataset import Dataset
from fusion.hierarchy import Tree, tables_of
from fusion.scales import is_sum
from fusion.search import FUSION_VERSION, Choice, Fusion, Runner, Validation, fuse
from orchestrator.ledger.folders import FUSED, HELD_OUT, REPORT, RESULT, SYSTEMS, Record, checksums, write_record
from orchestrator.plan import Plan, digest, table_names
from orchestrator.system import SystemSpec
from scoring.atomic import atomic
from scoring.errors import InputError
from scoring.metrics import Metrics, has_labels, official_metrics
from scoring.table import file_sha256, write_table

log = logging.getLogger(__name__)

BASELINE = "log-mel baseline"


def fused_system(
    system: SystemSpec,
    dataset: Dataset,
    plan: Plan,
    tables: Mapping[str, pa.Table],
    folder: Path,
    runner: Runner,
    baseline: tuple[str, pa.Table] | None = None,
) -> dict[str, Any]:
    """Fuse a system into `folder`, with a record for MLflow; what is there already, from the same tables, is kept.

    baseline: name and table of what the system is compared with

    Returns the result that stands in `result.json`.
    """
    tree = plan.trees[system.name]
    members = {name: tables[name] for name in tables_of(tree)}
    tags = {
        "role": "fusion",
        "system": system.name,
        "fusion_id": _fusion_id(tree, members, dataset.fingerprint, baseline),
    }
    finished = finished_result(folder, tags["fusion_id"])
    if finished is not None:
        return finished
    log.info("%s: fusing %d score tables", system.name, len(members))
    metadata = {"system": system.name, "fusion_id": tags["fusion_id"], "spec": system.model_dump_json()}
    about = {
        "system": system.name,
        "description": system.description,
        "dataset": dataset.fingerprint,
        "branches": [_branch(name, table, plan) for name, table in members.items()],
        "missing": [
            b.name for b in plan.branches if system.name in b.systems and not members.keys() & {*table_names(b)}
        ],
        "spec": system.model_dump(),
        "baseline": {"name": BASELINE, "table": baseline[0], **_metrics(baseline[1])} if baseline else None,
    }
    (folder.parent.parent / REPORT).unlink(missing_ok=True)
    result, fusion = fuse_into(folder, tags["fusion_id"], members, tree, metadata, about, runner, dataset.root)
    record = Record(name=system.name, identity=tags, tags={"method": fusion.method}, files=checksums(folder))
    write_record(folder, record)
    return result


def fuse_into(
    folder: Path,
    fusion_id: str,
    tables: Mapping[str, pa.Table],
    tree: Tree,
    metadata: Mapping[str, str],
    about: Mapping[str, Any],
    runner: Runner,
    data: Path | None = None,
) -> tuple[dict[str, Any], Fusion]:
    """Fuse tables and write `fused.parquet` and `result.json` into `folder`."""
    fusion = fuse(tables, tree, metadata, runner=runner)
    folder.mkdir(parents=True, exist_ok=True)
    checksum = write_table(fusion.table, folder / FUSED)
    (folder / HELD_OUT).unlink(missing_ok=True)  # of an earlier fusion
    if fusion.held_out is not None:
        write_table(fusion.held_out, folder / HELD_OUT)
    made = {
        "date": datetime.now(UTC).date().isoformat(),
        "version": version("tutti-asd"),
        "command": shlex.join(["tutti", *sys.argv[1:]]),
        **({"data": str(data.resolve())} if data else {}),
    }
    result = {**about, **describe(fusion), "fusion_id": fusion_id, "sha256": checksum, "made": made}
    write_json(folder / RESULT, result)
    return json.loads(json.dumps(result)), fusion


def _fusion_id(tree: Tree, tables: Mapping[str, pa.Table], dataset: str, baseline: tuple[str, pa.Table] | None) -> str:
    """Hash of all that the fusion depends on: scores, and the data set for names and labels of the clips."""
    scores = {
        name: hashlib.sha256(table["calibrated"].to_numpy().tobytes()).hexdigest() for name, table in tables.items()
    }
    return digest([tree, scores, dataset, baseline and baseline[0], FUSION_VERSION])


# What every reader of a result may rely on.
_FIELDS = {"system", "branches", "machines", "methods", "delivered", "omega", "headline", "delivers", "made"}


def read_result(folder: Path) -> dict[str, Any]:
    """The result of a fusion in its folder; see `fuse_into` and `describe` for its fields.

    Raises
    ------
    InputError
        If there is none, or it is damaged or of an older tutti.
    """
    path = folder / RESULT
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        complete = result.keys() >= _FIELDS
    except FileNotFoundError:
        raise InputError(f"{path}: not there; `tutti run` and `tutti fuse` write it") from None
    except (OSError, ValueError, AttributeError):
        complete = False
    if not complete:
        raise InputError(f"{path}: damaged, or of an older tutti; run the same command again") from None
    return result


def result_folders(out: Path) -> list[Path]:
    """The folders with a result in a run's folder, or the folder itself if it is that of `tutti fuse`."""
    return [path.parent for path in sorted((out / SYSTEMS).glob(f"*/{RESULT}")) or out.glob(RESULT)]


def finished_result(folder: Path, fusion_id: str) -> dict[str, Any] | None:
    """The result that stands in `folder`, if it is this fusion's and its fused table is intact."""
    try:
        result = read_result(folder)
        intact = result["fusion_id"] == fusion_id and result["sha256"] == file_sha256(folder / FUSED)
    except (OSError, KeyError, InputError):
        return None
    return result if intact else None


def _branch(name: str, table: pa.Table, plan: Plan) -> dict[str, Any]:
    branch_id, _, detector = name.partition("/")
    names = {branch.branch_id: branch.name for branch in plan.branches}
    return described_table(name, names[branch_id], detector, table)


def described_table(name: str, branch: str, detector: str, table: pa.Table) -> dict[str, Any]:
    """What a result says of one of the tables that are fused."""
    return {"table": name, "branch": branch, "detector": detector, **_metrics(table)}


def _metrics(table: pa.Table) -> dict[str, Any]:
    return official_metrics(table).as_dict() if has_labels(table) else {"omega": None, "machines": {}}


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file through a temporary name."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1), encoding="utf-8")


def describe(fusion: Fusion) -> dict[str, Any]:
    """A fusion as JSON; Omega in per cent, None where nothing is known. `docs/fusion.md` explains the fields."""
    v = fusion.validation
    result: dict[str, Any] = {
        "transductive": fusion.transductive,
        "delivered": {
            "method": fusion.method,
            "strength": fusion.strength,
            "scale": fusion.scale,
            "why": fusion.why,
            "weights": fusion.configuration_weights,
            "table_weights": fusion.weights,
            "in_sample": _omega(v.in_sample if v else None),
            "lomo": _omega(v.lomo if v else None),
            "clips": v.clips if v else None,
            "ci": v.interval if v else None,
            "gains": {name: asdict(comparison) for name, comparison in v.gains.items()} if v else {},
        },
        "methods": {name: _choice(choice) for name, choice in v.methods.items()} if v else {},
        "machines": {"in_sample": _machines(v.in_sample if v else None), "lomo": _machines(v.lomo if v else None)},
        "complementarity": _complementarity(v) if v else None,
    }
    return {**result, "omega": _comparable(result), "headline": headline(result), "delivers": _delivers(result)}


def rows_of_methods(result: dict[str, Any]) -> list[tuple[str, float | None, float | None]]:
    """Rows of name, in-sample and LOMO Omega, as a command prints them: the baseline, methods, what is delivered."""
    delivered = result["delivered"]
    several = sum(map(len, delivered["weights"].values())) > 1  # of one configuration all weights are the same
    methods = result["methods"].items() if several else ()
    rows = [(method, values["in_sample"], values["lomo"]) for method, values in methods]
    if (baseline := result.get("baseline")) and baseline["omega"] is not None:  # no label has chosen anything in it
        rows.insert(0, (baseline["name"], baseline["omega"], baseline["omega"]))
    rows.append(("delivered", delivered["in_sample"], delivered["lomo"]))
    return rows


def headline(result: dict[str, Any]) -> str:
    """What is delivered and why, in one line."""
    mark = "TRANSDUCTIVE, normalised by test clips: " if result["transductive"] else ""
    return f"{mark}{_delivers(result)} delivered ({result['delivered']['why']}){_other_figure(result)}"


def _other_figure(result: dict[str, Any]) -> str:
    """Why the delivered LOMO Omega is not that of the method's own row, if it is not."""
    delivered, row = result["delivered"], result["methods"].get(result["delivered"]["method"])
    if not row or row["lomo"] is None or abs(row["lomo"] - delivered["lomo"]) < 0.005:
        return ""
    return (
        f"; LOMO {delivered['lomo']:.2f} chooses method and strength without each machine, the row's "
        f"{row['lomo']:.2f} the strength alone, and with this strength it is {row['fixed']:.2f}"
    )


def _comparable(result: Mapping[str, Any]) -> float | None:
    """The Omega to compare a system by: on held-out machines; in-sample where weights could not be chosen by labels."""
    delivered = result["delivered"]
    omega: float | None = delivered["in_sample"] if delivered["lomo"] is None else delivered["lomo"]
    return omega


def _delivers(result: Mapping[str, Any]) -> str:
    """What a system delivers, for people: the configuration, or the method and how many configurations it weighs."""
    delivered = result["delivered"]
    configurations = {f"{s}/{c}": weight for s, cs in delivered["weights"].items() for c, weight in cs.items()}
    used = [name for name, weight in configurations.items() if weight > 0]
    if len(used) == 1:
        return f"{used[0]} alone"
    method = " ".join(filter(None, [delivered["method"], delivered["strength"]]))
    mean = f"{method} weights" if is_sum(delivered["scale"]) else method.replace("_", " ")
    return f"{mean} of {len(used)} of {len(configurations)} configurations"


def _choice(choice: Choice) -> dict[str, Any]:
    return {
        "strength": choice.strength,
        "in_sample": choice.in_sample.omega,
        "machines": _machines(choice.in_sample),
        "lomo": _omega(choice.lomo),
        "clips": choice.clips,
        "fixed": choice.fixed,
        "gain": choice.gain,
        "gain_error": choice.gain_error,
    }


def _complementarity(v: Validation) -> dict[str, Any]:
    return {
        "configurations": v.names,
        "correlation": v.correlation.tolist(),
        "marginal": v.marginal,
    }


def _omega(metrics: Metrics | None) -> float | None:
    return metrics.omega if metrics else None


def _machines(metrics: Metrics | None) -> dict[str, Any] | None:
    return {name: asdict(values) for name, values in metrics.machines.items()} if metrics else None
