"""Commands on score tables: metrics, fuse, tables."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from orchestrator.commands.options import (
    backbone_option,
    ground_truth_option,
    json_option,
    path_type,
    print_result,
    print_table,
)
from scoring.errors import InputError, counted

log = logging.getLogger(__name__)


@click.command()
@click.argument("tables", nargs=-1, required=True, type=path_type, metavar="TABLE...")
@ground_truth_option
@json_option
def metrics(tables: tuple[Path, ...], ground_truth: Path | None, as_json: bool) -> None:
    """Print the official metrics of score tables, in per cent, with 95 % bootstrap intervals.

    TABLE is a Parquet file, a CSV file with a header, an anomaly_score_*.csv of the challenge, or a folder of these;
    the folder of a fusion stands for its fused table. The tables of a run's folder, or of one with an index.csv, are
    ranked, the best first. With --ground-truth, only machines with ground truth are measured.

    For any table of labelled clips, whoever made it.

    Precision, recall and F1 use thresholds from the table's training rows, if it has any.

    \b
    Example: tutti metrics runs/a
             tutti metrics runs/a/systems/s2
             tutti metrics runs/a --ground-truth dcase2026_task2_evaluator
    """
    from orchestrator.fuse.sources import INDEX, is_run

    several = {given for given in tables if is_run(given) or (given / INDEX).exists()}
    by_folder = {
        given: {str(p): _metrics_of(p, n, ground_truth) for p, n in _tables_in(given).items()} for given in tables
    }
    for given, found in by_folder.items():
        if given in several:
            by_folder[given] = dict(sorted(found.items(), key=lambda item: -(_to_rank_by(item[1])["omega"] or 0.0)))
    by_table = {name: m for found in by_folder.values() for name, m in found.items()}
    if as_json:
        click.echo(json.dumps({"tables": by_table} if len(by_table) > 1 else next(iter(by_table.values()))))
        return
    for given, found in by_folder.items():
        if given in several:
            _print_ranking(given, found)
            continue
        for name, m in found.items():
            _print_metrics(name, m)


def _print_metrics(name: str, m: dict[str, Any]) -> None:
    values = {"auc_source": "AUC source", "auc_target": "AUC target", "pauc": "pAUC", "hmean": "hmean"}
    ci, decisions, held_out = m["ci"], m["decisions"], m["held_out"]
    extra = {"precision": "precision", "recall": "recall", "f1": "F1"} if decisions else {}
    rows = [
        (
            machine,
            *(_with_interval(of[key], ci["machines"][machine][key]) for key in values),
            *(decisions[machine][key] for key in extra),
        )
        for machine, of in m["machines"].items()
    ]
    omega = "Omega, in-sample" if m["in_sample"] else "Omega"
    rows.append((omega, "", "", "", _with_interval(m["omega"], ci["omega"]), *("" for _ in extra)))
    print_table((name, *values.values(), *extra.values()), rows)
    if m["in_sample"]:
        lomo = f"; on held-out machines (LOMO): {_with_interval(held_out['omega'], held_out['ci'])}" if held_out else ""
        click.echo(f"in-sample: the weights were chosen on these labels{lomo}")
    if m["transductive"]:
        click.echo(f"{name}: statistics of test clips have reached these scores", err=True)


def _print_ranking(run: Path, tables: dict[str, dict[str, Any]]) -> None:
    """Tables with Omega, its interval, and the machine on which they do worst; of systems on held-out machines."""
    rows = []
    for m in tables.values():
        shown = _to_rank_by(m)
        known = [(of["hmean"], machine) for machine, of in shown["machines"].items() if of["hmean"] is not None]
        worst = "{1} {0:.1f}".format(*min(known)) if known else ""
        interval = "{:.1f}–{:.1f}".format(*shown["ci"]) if shown["ci"] else ""
        rows.append((m["name"], shown["omega"], interval, m["omega"] if m["in_sample"] else "", worst))
    print_table((str(run), "Omega, %", "95 % interval", "in-sample", "weakest machine"), rows)
    if any(m["held_out"] for m in tables.values()):
        click.echo("systems by held-out machines (LOMO); in-sample, on the labels that their weights were chosen on")


def _to_rank_by(m: dict[str, Any]) -> dict[str, Any]:
    return m["held_out"] or {**m, "ci": m["ci"]["omega"]}


def _tables_in(path: Path) -> dict[Path, str]:
    """The tables of a run's folder by what they are called, or that of a fusion; any other path is a table itself."""
    from orchestrator.fuse.result import read_result, result_folders
    from orchestrator.fuse.sources import INDEX, from_index, is_run, of_run
    from orchestrator.ledger.folders import FUSED, table_file

    if (path / INDEX).exists():
        return {file: name for name, file in from_index(path).files.items()}
    folders = result_folders(path)
    if not is_run(path):
        return {folder / FUSED: "" for folder in folders} or {path: ""}
    names: dict[Path, str] = {}
    for folder in folders:
        names[folder / FUSED] = f"system {folder.name}"
        if baseline := read_result(folder).get("baseline"):
            names[table_file(path, baseline["table"])] = baseline["name"]
    for source in of_run(path):
        for name, file in source.files.items():
            names.setdefault(file, name)
    return names


def _metrics_of(path: Path, name: str, ground_truth: Path | None) -> dict[str, Any]:
    from fusion.search import ON_THESE_LABELS, WEIGHTS
    from scoring.bootstrap import bootstrap_intervals
    from scoring.decisions import decision_metrics, thresholds
    from scoring.elsewhere import read_scores
    from scoring.ground_truth import read_ground_truth
    from scoring.metrics import has_labels, official_metrics, other_rule
    from scoring.table import is_transductive, metadata_of

    known = table = read_scores(path)
    if ground_truth is not None:
        table = read_ground_truth(ground_truth).revealed(table)
    if note := other_rule(table):
        click.echo(f"{path}: {note}", err=True)
    metrics = official_metrics(table).as_dict()
    of_these = known.filter([machine in metrics["machines"] for machine in known["machine"].to_pylist()])
    held_out = _held_out(path) if ground_truth is None else None
    chosen_here = held_out is not None or metadata_of(known).get(WEIGHTS) == ON_THESE_LABELS
    try:
        decided = {name: asdict(d) for name, d in decision_metrics(table, thresholds(table)).items()}
    except InputError as error:
        click.echo(f"{path}: no decisions: {error}", err=True)
        decided = {}
    return {
        "name": name,
        **metrics,
        "ci": asdict(bootstrap_intervals(table)),
        "in_sample": chosen_here and has_labels(of_these),
        "held_out": held_out,
        "decisions": decided,
        "transductive": is_transductive(table),
    }


def _held_out(path: Path) -> dict[str, Any] | None:
    """Of a fused table with its result beside it what it reaches on held-out machines, if that is known."""
    from orchestrator.fuse.result import read_result
    from orchestrator.ledger.folders import FUSED

    with suppress(InputError):
        if path.name == FUSED and (result := read_result(path.parent))["delivered"]["lomo"] is not None:
            delivered = result["delivered"]
            return {"omega": delivered["lomo"], "ci": delivered["ci"], "machines": result["machines"]["lomo"]}
    return None


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> float | str | None:
    return value if interval is None else f"{value:.2f} ({interval[0]:.1f}–{interval[1]:.1f})"


@click.command()
@click.argument("system", required=False)
@click.option(
    "--tables",
    multiple=True,
    type=path_type,
    help="Folder of a run, folder of score tables, or a table; repeatable.",
)
@click.option("--tracking-uri", help="MLflow store to read the tables of finished branches from.")
@click.option("--experiment", help="Name of the experiment in that store.")
@click.option("--run", help="Id of one `tutti run` in the experiment: use only its branches.")
@backbone_option
@click.option("--out", required=True, type=path_type, help="Folder for fused.parquet and result.json.")
@click.option("--weights", type=path_type, help="Apply the weights of this result.json; no label is read.")
@click.option(
    "--transductive-normalisation",
    "transductive",
    is_flag=True,
    help="Normalise by the test clips, for tables without training clips; breaks the challenge's rules.",
)
@click.option("--address", help="Ray cluster, or `local` to start Ray; default: one core of this process.")
@json_option
def fuse(
    system: str | None,
    backbone: str | None,
    out: Path,
    weights: Path | None,
    transductive: bool,
    address: str | None,
    as_json: bool,
    **source: Any,
) -> None:
    """Fuse score tables, also those of other tools.

    A run contributes the configurations of its systems, a folder those of its index.csv: the columns table (file name
    without suffix), family (sub-system), config (configuration) and seed. Tables without an index, Parquet or CSV files
    or folders of a system's anomaly_score_*.csv, are configurations of one sub-system. What two sources call the same
    has the source's name in front.

    SYSTEM takes its own tables alone: as the run has trained it, else by the settings of its file.

    For tables that are there already; `tutti run` fuses its own.

    \b
    Example: tutti fuse --tables runs/a --tables theirs --out fused
             tutti fuse s2 --tables runs/a --out fused
             tutti fuse --weights fused/result.json --tables scores/eval --out fused_eval
    """
    from orchestrator.fuse.standalone import apply_result, fuse_tables

    paths = _paths(out, **source)
    if weights:
        result = apply_result(weights, paths, out, system, backbone, transductive)
    else:
        result = fuse_tables(paths, out, system, backbone, transductive, address)
    if result["transductive"]:
        log.warning(
            "warning: scores are normalised by test clips (transductive), which the challenge's rules forbid; every "
            "file that is written carries the mark"
        )
    if as_json:
        click.echo(json.dumps(result))
    elif not weights:
        print_result(result)
    click.echo(f"{out / 'fused.parquet'}", err=as_json)


def _paths(
    out: Path, tables: tuple[Path, ...], tracking_uri: str | None, experiment: str | None, run: str | None
) -> list[Path]:
    """Where the tables lie that are fused; a store's are copied into a folder below `out`."""
    log.info("reading score tables from %s", ", ".join(map(str, tables)) or tracking_uri)
    if tables and not (tracking_uri or experiment or run):
        return [*tables]
    if tables or not tracking_uri or not experiment:
        raise InputError(
            "give either --tables DIR, or --tracking-uri URI with --experiment NAME, as the MLflow UI shows it, and "
            "maybe --run ID"
        )
    from orchestrator.fuse.copies import copied_run

    return [copied_run(tracking_uri, experiment, run, out / "store_tables")]


@click.command()
@click.argument("run", type=path_type, metavar="RUN_DIR")
@click.argument("folder", type=path_type, metavar="DIR")
def tables(run: Path, folder: Path) -> None:
    """Copy a run's score tables to a new folder, as SUB-SYSTEM/CONFIGURATION/SEED.parquet with an index.csv.

    For others, or other tools: `tutti fuse --tables DIR` gives what it gives of the run.

    \b
    Example: tutti tables runs/a scores
    """
    from orchestrator.fuse.copies import write_tables

    click.echo(f"{counted(write_tables(run, folder), 'score table')} in {folder}")
