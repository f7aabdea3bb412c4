"""Commands on packaged ensembles: export, score, enrol."""

from __future__ import annotations

import json
from pathlib import Path

import click

from orchestrator.commands.options import existing_path, json_option, path_type, print_table
from scoring.atomic import atomic
from scoring.errors import InputError

_seconds = click.FloatRange(min=0, min_open=True)
_false_alarms_option = click.option(
    "--false-alarms",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of normal clips above the threshold; default: 0.1, or what the model was exported with.",
)


@click.command()
@click.argument("folder", type=path_type, metavar="RUN_DIR")
@click.argument("system", required=False)
@click.option("--out", required=True, type=path_type, help="Folder of the model; must not exist.")
@_false_alarms_option
def export(folder: Path, system: str | None, out: Path, false_alarms: float | None) -> None:
    """Package a fused system of a finished run as an MLflow model: weights, banks, calibration, thresholds, code.

    To score recordings elsewhere, with `tutti score` or MLflow, and to add machines with `tutti enrol`.

    \b
    Example: tutti export runs/a s2 --out model
             tutti export runs/a s2 --out model --false-alarms 0.01
    """
    click.echo(f"packaging a system of {folder}", err=True)
    from orchestrator.model.export import export_system

    click.echo(export_system(folder, system, out, false_alarms))


@click.command()
@click.argument("model", type=existing_path)
@click.argument("clips", nargs=-1, required=True, type=existing_path, metavar="CLIP...")
@click.option("--machine", help="Default: the model's only machine, or from the path, MACHINE/test/CLIP.")
@click.option("--section", type=click.IntRange(min=0), help="Default: from the clip's name (section_02_…), else 0.")
@click.option("--out", type=path_type, help="Also write the scores to a file; .csv or .parquet.")
@click.option("--window", type=_seconds, help="Score long recordings in windows of so many seconds.")
@click.option("--hop", type=_seconds, help="Seconds between windows; default: half.")
@_false_alarms_option
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="Device.")
@json_option
def score(
    model: Path,
    clips: tuple[Path, ...],
    machine: str | None,
    section: int | None,
    out: Path | None,
    window: float | None,
    hop: float | None,
    false_alarms: float | None,
    device: str,
    as_json: bool,
) -> None:
    """Score recordings, or all recordings in folders, with a packaged ensemble.

    For recordings of machines that the model knows; `tutti export` packages one.

    \b
    Example: tutti score model clip.wav --machine fan
             tutti score model night.wav --machine fan --window 10 --out night.csv
    """
    if hop and not window:
        raise InputError("--hop belongs to --window, which scores a long recording over time")
    if out and out.suffix not in (".csv", ".parquet"):
        raise InputError(f"{out}: give a file that ends in .csv or .parquet")
    if out and not out.parent.is_dir():  # said before minutes of work
        raise InputError(f"{out}: there is no folder {out.parent}; make it first")
    click.echo(f"loading {model}", err=True)
    from orchestrator.model.ensemble import Ensemble
    from orchestrator.model.recordings import score_clips

    table = score_clips(Ensemble(model, device, false_alarms), clips, machine, section, window, hop)
    scores = table.drop_columns("contributions")
    if out:
        from pyarrow import csv, parquet

        with atomic(out) as temporary:
            csv.write_csv(scores, temporary) if out.suffix == ".csv" else parquet.write_table(table, temporary)
    if as_json:
        click.echo(json.dumps({"scores": table.to_pylist()}))
        return
    rows = scores.to_pylist()
    for row in rows:
        if len(rows) > 1 and not row["anomaly"]:
            row["changed"] = ""
        elif row["changed"] == "":
            row["changed"] = "nothing stands out"
    print_table(scores.column_names, [[*row.values()] for row in rows])
    if table.num_rows == 1:  # one is looked at closely
        (parts,) = table["contributions"].to_pylist()
        ordered = sorted(parts, key=lambda part: -part["contribution"])
        print_table(("branch", "contribution"), [[*part.values()] for part in ordered])


@click.command()
@click.argument("model", type=existing_path)
@click.argument("clips", nargs=-1, required=True, type=existing_path, metavar="CLIP...")
@click.option("--machine", required=True, help="Name of the machine.")
@click.option("--section", type=click.IntRange(min=0), default=0, help="Of the machine.")
@click.option("--out", required=True, type=path_type, help="Folder of the new model; must not exist.")
@click.option("--replace", is_flag=True, help="In place of the normals by which the model knows this machine.")
def enrol(model: Path, clips: tuple[Path, ...], machine: str, section: int, out: Path, replace: bool) -> None:
    """Add a machine to a packaged ensemble from normal recordings of it; nothing is trained.

    For a machine that was not in the data of the run, or, with --replace, one whose normal sound has changed.

    \b
    Example: tutti enrol model normal/*.wav --machine press --out model2
             tutti enrol model after-repair/*.wav --machine fan --replace --out model2
    """
    click.echo(f"loading {model}", err=True)
    from orchestrator.model.enrolment import enrol as add
    from orchestrator.model.recordings import recordings

    threshold = add(model, machine, recordings(clips), out, section, replace)
    click.echo(f"{out}: {machine} section {section} enrolled; scores above {threshold:.3f} are anomalies")
