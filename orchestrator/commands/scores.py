"""Commands on score tables: metrics, fuse."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from orchestrator.commands.options import backbone_option, cell, ground_truth_option, json_option, print_table
from scoring.errors import InputError

log = logging.getLogger(__name__)


@click.command()
@click.argument("tables", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="TABLE...")
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
    """The tables of a run folder; any other path is a table itself."""
    if not path.is_dir():
        return [path]
    from orchestrator.ledger.folders import FUSED, SYSTEMS

    run = sorted((path / SYSTEMS).glob(f"*/{FUSED}"))
    return run or [path]


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
    intervals = bootstrap_intervals(table).as_dict()
    return {**metrics, "ci": intervals, "decisions": decided, "transductive": is_transductive(table)}


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    return cell(value) if interval is None else f"{value:.2f} ({interval[0]:.1f}–{interval[1]:.1f})"


@click.command()
@click.argument("system", required=False)
@click.option(
    "--tables", type=click.Path(path_type=Path), help="Folder of score tables, or a run folder (with SYSTEM)."
)
@click.option("--tracking-uri", help="MLflow store to read the tables of finished branches from.")
@click.option("--experiment", help="Name of the experiment in that store.")
@click.option("--run", help="Id of one `tutti run` in the experiment: use only its branches.")
@backbone_option
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for fused.parquet and result.json.")
@click.option(
    "--weights", type=click.Path(path_type=Path), help="Apply the weights of this result.json; no label is read."
)
@click.option(
    "--transductive-normalisation",
    "transductive",
    is_flag=True,
    help="Normalise by the test clips, for tables without training clips; breaks the challenge's rules.",
)
@click.option("--address", help="Ray cluster, or `local` to start Ray; default: one core of this process.")
@json_option
def fuse(as_json: bool, **options: Any) -> None:
    """Fuse score tables, also those of other tools. Running it again continues.

    Without SYSTEM the tree is read from index.csv: the columns table (file name without suffix), family
    (sub-system), config (configuration) and seed; without an index, each table in the folder is a configuration.
    Tables are Parquet or CSV files, or folders of a system's anomaly_score_*.csv, as teams submit them.
    For tables that are there already; `tutti run` fuses its own.

    \b
    Example: tutti fuse --tables scores/dev --out fused
             tutti fuse --weights fused/result.json --tables scores/eval --out fused_eval
    """
    log.info("reading score tables from %s", options["tables"] or options["tracking_uri"])
    from orchestrator.fuse.request import Request, fuse_tables
    from orchestrator.fuse.result import rows_of_methods

    result = fuse_tables(Request(**options))
    if as_json:
        click.echo(json.dumps(result))
    elif "delivered" in result:
        heading, rows = result["headline"], rows_of_methods(result)
        click.echo(heading)
        print_table(("Omega, %", "in-sample", "LOMO"), rows)
    click.echo(f"{options['out'] / 'fused.parquet'}", err=as_json)
