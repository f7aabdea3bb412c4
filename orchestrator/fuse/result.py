"""A fusion into its folder: score tables → weights, `fused.parquet` and `result.json`, unless that is done already."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from branches.data.dataset import Dataset
from fusion.hierarchy import Tree, tables_of
from fusion.search import FUSION_VERSION, Choice, Fusion, Runner, Validation, fuse
from orchestrator.fuse.tables import TableFiles
from orchestrator.ledger.folders import FUSED, HELD_OUT, REPORT, RESULT, SYSTEMS, table_file
from orchestrator.plan import Plan, digest
from orchestrator.system import SystemSpec
from scoring.atomic import atomic
from scoring.errors import InputError, counted
from scoring.metrics import has_labels, official_metrics
from scoring.table import file_sha256, write_table

log = logging.getLogger(__name__)

LARGEST = 40  # configurations that a result compares and a page draws, at most
BASELINE = "log-mel baseline"
# The baseline as a sub-system of a system file.
ADDED_BASELINE = (
    "statistics: {log_mel: {branch: {backbone: log_mel, strategy: frozen, pooling: band_statistics}, "
    "detector: {name: mahalanobis, standardised: true}}}"
)


def fused_system(system: SystemSpec, dataset: Dataset, plan: Plan, out: Path, runner: Runner) -> dict[str, Any]:
    """Fuse a system's finished tables in the run folder `out`; what is there already, from the same files, is kept.

    Returns the result that stands in `result.json`.
    """
    tree, folder = plan.trees[system.name], out / SYSTEMS / system.name
    members = tables_of(tree)
    tables = TableFiles({name: table_file(out, name) for name in filter(None, [*members, plan.baseline])})
    checksums = [[name, file_sha256(path)] for name, path in tables.paths.items()]
    fusion_id = digest([tree, checksums, plan.baseline, dataset.fingerprint, FUSION_VERSION])
    if (finished := finished_result(folder, fusion_id)) is not None:
        return finished
    named = plan.tables(system.name)
    fused = [name for name in system.tables if named[name] in tables]
    log.info("%s: fusing %s", system.name, counted(len(members), "score table"))
    detectors = {f"{b.branch_id}/{s.name}": s.detector.name for b in plan.branches for s in b.scorings}

    def described(name: str, table: str) -> dict[str, Any]:
        return described_table(table, name, detectors[table], tables[table])

    about = {
        "system": system.name,
        "description": system.description,
        "dataset": dataset.fingerprint,
        "branches": [described(name, named[name]) for name in fused],
        "missing": [name for name in system.tables if named[name] not in tables],
        "spec": system.model_dump(),
        "baseline": {"name": BASELINE, **described(*plan.tables("").popitem())} if plan.baseline else None,
    }
    metadata = {"system": system.name, "fusion_id": fusion_id, "spec": system.model_dump_json()}
    return fuse_into(folder, fusion_id, tables, tree, metadata, about, runner, dataset.root)


def fuse_into(
    folder: Path,
    fusion_id: str,
    tables: Mapping[str, pa.Table],
    tree: Tree,
    metadata: Mapping[str, str],
    about: Mapping[str, Any],
    runner: Runner,
    data: Path | None = None,
) -> dict[str, Any]:
    """Fuse tables into `folder`: `fused.parquet`, `held_out.parquet` if there is one, and `result.json`.

    Parameters
    ----------
    metadata: of the tables that are written
    about: what the result says of the system and its tables
    data: root of the data set, for the report

    Returns the result that stands in `result.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fusion = fuse(tables, tree, metadata, runner=runner)
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
    return write_result(folder, result)


def write_result(folder: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    """Write `result.json` and remove the report of what it replaces; returns what a reader will find."""
    text = json.dumps(result, indent=1, allow_nan=False)
    ((folder.parent.parent if folder.parent.name == SYSTEMS else folder) / REPORT).unlink(missing_ok=True)
    with atomic(folder / RESULT) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return json.loads(text)


# What every reader of a result may rely on.
_FIELDS = {"system", "branches", "machines", "methods", "delivered", "omega", "headline", "delivers", "made"}


def read_result(path: Path) -> dict[str, Any]:
    """The result of a fusion, in its folder or in this JSON file; see `fuse_into` and `describe` for its fields.

    Raises InputError if there is none, or it is damaged or of an older tutti.
    """
    path = path if path.suffix == ".json" and not path.is_dir() else path / RESULT
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        complete = result.keys() >= _FIELDS
    except FileNotFoundError:
        raise InputError(f"{path}: not there; `tutti run` and `tutti fuse` write it") from None
    except (OSError, ValueError, AttributeError, RecursionError):
        complete = False
    if not complete:
        raise InputError(f"{path}: no result of a fusion, damaged or of an older tutti; run the same command again")
    return result


def result_folders(out: Path) -> list[Path]:
    """The folders with a result in a run's folder, or the folder itself if it is that of `tutti fuse`."""
    return [path.parent for path in sorted((out / SYSTEMS).glob(f"*/{RESULT}")) or out.glob(RESULT)]


def system_folders(run: Path, names: Sequence[str] = ()) -> list[Path]:
    """The folders of a run's systems in the order of their names; of all without names.

    Raises InputError if the run has no results, or none of a system.
    """
    finished = {folder.name: folder for folder in result_folders(run) if folder != run}
    if not finished:
        raise InputError(f"{run}: no results in it; `tutti run` makes them")
    if unknown := [name for name in names if name not in finished]:
        raise InputError(f"{run}: no result of system {unknown[0]!r}; there are {', '.join(finished)}")
    return [finished[name] for name in dict.fromkeys(names or finished)]


def finished_result(folder: Path, fusion_id: str) -> dict[str, Any] | None:
    """The result that stands in `folder`, if it is this fusion's and its tables are there."""
    with suppress(OSError, KeyError, InputError):
        result = read_result(folder)
        whole = result["machines"]["lomo"] is None or (folder / HELD_OUT).exists()
        if whole and result["fusion_id"] == fusion_id and result["sha256"] == file_sha256(folder / FUSED):
            return result
    return None


def described_table(name: str, branch: str, detector: str, table: pa.Table) -> dict[str, Any]:
    """What a result says of one of the tables that are fused."""
    metrics = official_metrics(table).as_dict() if has_labels(table) else {"omega": None, "machines": {}}
    return {"table": name, "branch": branch, "detector": detector, **metrics}


def describe(fusion: Fusion) -> dict[str, Any]:
    """A fusion as JSON; Omega in per cent, None where nothing is known. `docs/fusion.md` explains the fields."""
    v = fusion.validation
    in_sample, lomo = (v.in_sample.as_dict(), v.lomo and v.lomo.as_dict()) if v else (None, None)
    result: dict[str, Any] = {
        "transductive": fusion.transductive,
        "delivered": {
            "method": fusion.method,
            "strength": fusion.strength,
            "scale": fusion.scale,
            "why": fusion.why,
            "weights": fusion.configuration_weights,
            "table_weights": fusion.weights,
            "in_sample": in_sample and in_sample["omega"],
            "lomo": lomo and lomo["omega"],
            "ci": v and v.interval,
            "gains": {name: asdict(comparison) for name, comparison in v.gains.items()} if v else {},
        },
        "methods": {name: _choice(choice) for name, choice in v.methods.items()} if v else {},
        "machines": {"in_sample": in_sample and in_sample["machines"], "lomo": lomo and lomo["machines"]},
        "complementarity": v and {**_correlations(v, fusion.configuration_weights), "marginal": v.marginal},
    }
    # To compare a system by: on held-out machines; in-sample where weights could not be chosen by labels.
    omega = (lomo or in_sample or {"omega": None})["omega"]
    result["omega"] = omega
    return {**result, "headline": headline(result), "delivers": _delivers(result)}


def heaviest(weights: Mapping[str, Mapping[str, float]]) -> list[tuple[str, str, float]]:
    """Sub-system, name and weight of the `LARGEST` configurations with the most weight, in the tree's order."""
    leaves = [(s, name, weight) for s, c in weights.items() for name, weight in c.items()]
    places = sorted(range(len(leaves)), key=lambda place: -leaves[place][2])[:LARGEST]
    return [leaves[place] for place in sorted(places)]


def _correlations(validation: Validation, weights: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Correlations of the heaviest configurations: of a thousand, all would be a million numbers."""
    names = [f"{subsystem}/{name}" for subsystem, name, _ in heaviest(weights)]
    places = [validation.names.index(name) for name in names]
    return {"configurations": names, "correlation": validation.correlation[places][:, places].tolist()}


def _choice(choice: Choice) -> dict[str, Any]:
    return {
        "strength": choice.strength,
        "in_sample": choice.in_sample.omega,
        "machines": choice.in_sample.as_dict()["machines"],
        "lomo": choice.lomo and choice.lomo.omega,
        "fixed": choice.fixed,
        "gain": choice.gain,
        "gain_error": choice.gain_error,
    }


def rows_of_methods(result: Mapping[str, Any]) -> list[tuple[str, float | None, float | None]]:
    """Rows of name, in-sample and held-out Omega: the baseline, the methods, and last what is delivered.

    The delivered method has no row beside that of the system, whose figure counts the choice of the method too; and no
    method has one where there is nothing to choose, or no machine to hold out.
    """
    delivered = result["delivered"]
    choice = sum(map(len, delivered["weights"].values())) > 1 and result["machines"]["lomo"]
    rows = [
        (_spoken(method), values["in_sample"], values["lomo"])
        for method, values in result["methods"].items()
        if choice and method != delivered["method"]
    ]
    if (baseline := result.get("baseline")) and baseline["omega"] is not None:  # no label has chosen anything in it
        rows.insert(0, (baseline["name"], baseline["omega"], baseline["omega"]))
    name = f"{_spoken(delivered['method'])}, delivered" if choice else "delivered"
    return [*rows, (name, delivered["in_sample"], result["omega"])]


def headline(result: Mapping[str, Any]) -> str:
    """The one figure of a system, how it was got, and what is delivered, in one line."""
    mark = "TRANSDUCTIVE, normalised by test clips: " if result["transductive"] else ""
    if (omega := result["omega"]) is None:
        return f"{mark}{_delivers(result)}; no labels to measure it by"
    return f"{mark}Omega {omega:.2f} % {how_measured(result)}: {_delivers(result)}"


def how_measured(result: Mapping[str, Any]) -> str:
    """How the figure of a system was got, in words that follow it."""
    if result["machines"]["lomo"]:
        return "on held-out machines, all choices repeated without each"
    return f"on {', '.join(result['machines']['in_sample'])}, the only machine with labels"


def below_baseline(result: Mapping[str, Any]) -> str | None:
    """That a system's figure is below that of the baseline, and what to do about it; None if it is not."""
    baseline = result.get("baseline") or {"omega": None}
    if None in (baseline["omega"], result["omega"]) or result["omega"] >= baseline["omega"]:
        return None
    figures = f"{result['omega']:.2f} against {baseline['omega']:.2f} %"
    has_it = baseline["table"] in {table["table"] for table in result["branches"]}
    remedy = "" if has_it else f"; add to its subsystems: {ADDED_BASELINE}"
    return f"{result['system']} is below the {baseline['name']}, which needs no training ({figures}){remedy}"


def _delivers(result: Mapping[str, Any]) -> str:
    """What a system delivers, for people: the configuration, or the method and how many configurations it weighs."""
    delivered = result["delivered"]
    configurations = {f"{s}/{c}": weight for s, cs in delivered["weights"].items() for c, weight in cs.items()}
    used = [name for name, weight in configurations.items() if weight > 0]
    if len(used) == 1:
        return f"{used[0]} alone"
    strength = f" ({delivered['strength']})" if delivered["strength"] else ""
    share = f"all {len(used)}" if len(used) == len(configurations) else f"{len(used)} of {len(configurations)}"
    weights = "" if delivered["method"] == "rank_average" else " weights"
    return f"{_spoken(delivered['method'])}{weights}{strength} of {share} configurations"


def _spoken(method: str) -> str:
    return method.replace("_", " ")
