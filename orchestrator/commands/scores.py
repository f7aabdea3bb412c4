"""Commands on score tables: metrics, fuse."""

from __future__ import annotations

import json
import logging
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
from scoring.errors import InputError

log = logging.getLogger(__name__)


@click.command()
@click.argument("tables", nargs=-1, required=True, type=path_type, metavar="TABLE...")
@ground_truth_option
@json_option
def metrics(tables: tuple[Path, ...], ground_truth: Path | None, as_json: bool) -> None:
    """Print the official metrics of score tables, in per cent, with 95 % bootstrap intervals.

    TABLE is a Parquet file, a CSV file with a header, an anomaly_score_*.csv of the challenge, or a folder of these;
    for a run folder, its baseline and its fused systems are measured. With --ground-truth, only machines with ground
    truth are.

    For any table of labelled clips, whoever made it.

    Precision, recall and F1 use thresholds from the table's training rows, if it has any.

    \b
    Example: tutti metrics runs/a/systems/s2/fused.parquet
             tutti metrics runs/a
             tutti metrics runs/a --ground-truth dcase2026_task2_evaluator
    """
    by_table = {str(path): _metrics_of(path, ground_truth) for given in tables for path in _tables_in(given)}
    if as_json:
        click.echo(json.dumps({"tables": by_table} if len(by_table) > 1 else next(iter(by_table.values()))))
        return
    values = {"auc_source": "AUC source", "auc_target": "AUC target", "pauc": "pAUC", "hmean": "hmean"}
    for name, m in by_table.items():
        ci, decisions = m["ci"], m["decisions"]
        extra = {"precision": "precision", "recall": "recall", "f1": "F1"} if decisions else {}
        rows = [
            (
                machine,
                *(_with_interval(of[key], ci["machines"][machine][key]) for key in values),
                *(decisions[machine][key] for key in extra),
            )
            for machine, of in m["machines"].items()
        ]
        rows.append(("Omega", "", "", "", _with_interval(m["omega"], ci["omega"]), *("" for _ in extra)))
        print_table((name, *values.values(), *extra.values()), rows)
        if m["transductive"]:
            click.echo(f"{name}: statistics of test clips have reached these scores", err=True)


def _tables_in(path: Path) -> list[Path]:
    """The tables of a run folder's baseline and systems, or of a fusion; any other path is a table itself."""
    from orchestrator.fuse.result import read_result, result_folders
    from orchestrator.ledger.folders import BRANCHES, FUSED, TABLES

    folders = result_folders(path)
    results = [read_result(folder) for folder in folders if folder != path]
    baselines = dict.fromkeys(baseline["table"] for result in results if (baseline := result.get("baseline")))
    files = [path / BRANCHES / f"{name.replace('/', f'/{TABLES}/')}.parquet" for name in baselines]
    return [*files, *(folder / FUSED for folder in folders)] or [path]


def _metrics_of(path: Path, ground_truth: Path | None) -> dict[str, Any]:
    from scoring.bootstrap import bootstrap_intervals
    from scoring.decisions import decision_metrics, thresholds
    from scoring.elsewhere import read_scores
    from scoring.ground_truth import read_ground_truth
    from scoring.metrics import official_metrics, other_rule
    from scoring.table import is_transductive

    table = read_scores(path)
    if ground_truth is not None:
        table = read_ground_truth(ground_truth).revealed(table)
    if note := other_rule(table):
        click.echo(f"{path}: {note}", err=True)
    metrics = official_metrics(table).as_dict()
    try:
        decided = {name: asdict(d) for name, d in decision_metrics(table, thresholds(table)).items()}
    except InputError as error:
        click.echo(f"{path}: no decisions: {error}", err=True)
        decided = {}
    return {
        **metrics,
        "ci": asdict(bootstrap_intervals(table)),
        "decisions": decided,
        "transductive": is_transductive(table),
    }


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> float | str | None:
    return value if interval is None else f"{value:.2f} ({interval[0]:.1f}–{interval[1]:.1f})"


@click.command()
@click.argument("system", required=False)
@click.option("--tables", type=path_type, help="Folder of score tables, or a run folder (with SYSTEM).")
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

    Without SYSTEM the tree is read from index.csv: the columns table (file name without suffix), family
    (sub-system), config (configuration) and seed; without an index, each table in the folder is a configuration.
    Tables are Parquet or CSV files, or folders of a system's anomaly_score_*.csv, as teams submit them.
    For tables that are there already; `tutti run` fuses its own.

    \b
    Example: tutti fuse --tables scores/dev --out fused
             tutti fuse --weights fused/result.json --tables scores/eval --out fused_eval
    """
    from orchestrator.fuse.standalone import apply_result, fuse_tables
    from orchestrator.system import load_system

    spec = load_system(system, backbone) if system else None
    tables = _folder(out, **source)
    if weights:
        result = apply_result(weights, tables, out, spec, transductive)
    else:
        result = fuse_tables(tables, out, spec, transductive, address)
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


def _folder(out: Path, tables: Path | None, tracking_uri: str | None, experiment: str | None, run: str | None) -> Path:
    """The folder of the tables that are fused; a store's are copied into one below `out`."""
    log.info("reading score tables from %s", tables or tracking_uri)
    if tables and not (tracking_uri or experiment or run):
        return tables
    if tables or not tracking_uri or not experiment:
        raise InputError(
            "give either --tables DIR, or --tracking-uri URI with --experiment NAME, as the MLflow UI shows it, and "
            "maybe --run ID"
        )
    from orchestrator.fuse.tables import copied_tables

    return copied_tables(tracking_uri, experiment, run, out / "store_tables")
