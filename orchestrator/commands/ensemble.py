"""Commands on packaged ensembles: export, score, enrol."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.commands.display import print_table
from orchestrator.commands.options import json_option
from scoring.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

_path = click.Path(path_type=Path)
_section = click.option("--section", type=click.IntRange(min=0), default=0, show_default=True)


@click.command()
@click.argument("folder", type=_path, metavar="RUN_DIR")
@click.argument("system", required=False)
@click.option("--out", required=True, type=_path, help="Folder of the model; must not exist.")
def export(folder: Path, system: str | None, out: Path) -> None:
    """Package a fused system of a finished run as an MLflow model: weights, banks, calibration, thresholds, code.

    \b
    Example: tutti export runs/a s2 --out model
    """
    from orchestrator.ensemble.export import export_system

    click.echo(export_system(folder, system, out))


@click.command()
@click.argument("model", type=_path)
@click.argument("clips", nargs=-1, required=True, type=_path, metavar="CLIP...")
@click.option("--machine", help="Default: as the challenge's folders say, MACHINE/test/CLIP.")
@_section
@click.option("--out", type=_path, help="Write the scores there, .csv or .parquet, too.")
@click.option("--window", type=click.FloatRange(min=0, min_open=True), help="Seconds; score one long recording so.")
@click.option("--hop", type=click.FloatRange(min=0, min_open=True), help="Seconds between windows; default: half.")
@click.option("--plot", type=_path, help="Draw the score over time; .png, .svg or .pdf.")
@json_option
def score(
    model: Path,
    clips: tuple[Path, ...],
    machine: str | None,
    section: int,
    out: Path | None,
    window: float | None,
    hop: float | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Score recordings with a packaged ensemble; a folder stands for the recordings in it.

    \b
    Example: tutti score model clip.wav --machine fan
             tutti score model night.wav --machine fan --window 10 --plot night.svg
    """
    from orchestrator.ensemble.ensemble import Ensemble

    if window is None and (hop or plot):
        raise InputError("--hop and --plot belong to --window, which scores a long recording over time")
    ensemble = Ensemble(model)
    if window is None:
        from orchestrator.ensemble.clips import score_clips

        table = score_clips(ensemble, clips, machine, section)
    else:
        table = _over_time(ensemble, clips, machine, section, window, hop, plot)
    if out is not None:
        _write(table, out)
    if as_json:
        click.echo(json.dumps({"scores": table.to_pylist()}))
        return
    shown = [name for name in table.column_names if name != "contributions"]
    print_table(tuple(shown), [tuple(row.values()) for row in table.select(shown).to_pylist()])
    if table.num_rows == 1 and "contributions" in table.column_names:
        (parts,) = table["contributions"].to_pylist()
        ordered = sorted((part["contribution"], part["branch"]) for part in parts)
        print_table(("branch", "contribution"), [(branch, value) for value, branch in reversed(ordered)])


def _over_time(
    ensemble: Any,
    clips: tuple[Path, ...],
    machine: str | None,
    section: int,
    window: float,
    hop: float | None,
    plot: Path | None,
) -> pa.Table:
    from orchestrator.ensemble.streaming import plot_over_time, score_over_time

    if len(clips) != 1 or machine is None:
        raise InputError("--window scores one recording of one machine; give one CLIP and --machine")
    table = score_over_time(ensemble, machine, clips[0], window, hop or window / 2, section)
    if plot is not None:
        plot_over_time(table, ensemble.reference(machine, section).threshold, f"{machine}: {clips[0].name}", plot)
    return table


def _write(table: pa.Table, path: Path) -> None:
    import pyarrow.csv
    import pyarrow.parquet

    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    elif path.suffix == ".csv":
        flat = table.drop_columns("contributions") if "contributions" in table.column_names else table
        pyarrow.csv.write_csv(flat, path)
    else:
        raise InputError(f"{path}: write to a file that ends in .csv or .parquet")


@click.command()
@click.argument("model", type=_path)
@click.argument("clips", nargs=-1, required=True, type=_path, metavar="CLIP...")
@click.option("--machine", required=True, help="Name of the new machine.")
@_section
@click.option("--out", required=True, type=_path, help="Folder of the new model; must not exist.")
def enrol(model: Path, clips: tuple[Path, ...], machine: str, section: int, out: Path) -> None:
    """Add a machine to a packaged ensemble from normal recordings of it; nothing is trained.

    \b
    Example: tutti enrol model normal/*.wav --machine press --out model2
    """
    from orchestrator.ensemble.clips import recordings
    from orchestrator.ensemble.enrolment import enrol as add

    threshold = add(model, machine, recordings(clips), out, section)
    click.echo(f"{out}: {machine} section {section} is known now; scores above {threshold:.3f} are anomalies")
