"""Commands on packaged ensembles: export, score, enrol."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.commands.options import json_option, print_table
from scoring.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

    from orchestrator.model.ensemble import Ensemble
    from scoring.decisions import Rule

_path = click.Path(path_type=Path)
_existing = click.Path(path_type=Path, exists=True)  # said before torch is loaded
_rule_option = click.option(
    "--rule",
    type=click.Choice(["gamma", "empirical", "false_alarm"]),
    help="Threshold: quantile of a gamma fitted to the normals' scores, of the scores, or a bound on false alarms.",
)
_false_alarms_option = click.option(
    "--false-alarms",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of normal clips above the threshold; default: 0.1.",
)
_TABLES, _PICTURES = (".csv", ".parquet"), (".png", ".svg", ".pdf")


@click.command()
@click.argument("folder", type=_path, metavar="RUN_DIR")
@click.argument("system", required=False)
@click.option("--out", required=True, type=_path, help="Folder of the model; must not exist.")
@_rule_option
@_false_alarms_option
def export(folder: Path, system: str | None, out: Path, rule: Rule | None, false_alarms: float | None) -> None:
    """Package a fused system of a finished run as an MLflow model: weights, banks, calibration, thresholds, code.

    To score recordings elsewhere, with `tutti score` or MLflow, and to add machines with `tutti enrol`.

    \b
    Example: tutti export runs/a s2 --out model
             tutti export runs/a s2 --out model --rule false_alarm --false-alarms 0.01
    """
    click.echo(f"packaging a system of {folder}", err=True)
    from orchestrator.model.export import export_system
    from scoring.decisions import FALSE_ALARMS

    click.echo(export_system(folder, system, out, rule or "gamma", false_alarms or FALSE_ALARMS))


@click.command()
@click.argument("model", type=_existing)
@click.argument("clips", nargs=-1, required=True, type=_existing, metavar="CLIP...")
@click.option("--machine", help="Default: the model's only machine, or from the path, MACHINE/test/CLIP.")
@click.option("--section", type=click.IntRange(min=0), help="Default: from the clip's name (section_02_…), else 0.")
@click.option("--out", type=_path, help="Also write the scores to a file; .csv or .parquet.")
@click.option(
    "--window",
    type=click.FloatRange(min=0, min_open=True),
    help="Score a long recording in windows of so many seconds.",
)
@click.option("--hop", type=click.FloatRange(min=0, min_open=True), help="Seconds between windows; default: half.")
@click.option("--plot", type=_path, help="Draw the score over time; .png, .svg or .pdf.")
@_rule_option
@_false_alarms_option
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Device.")
@json_option
def score(
    model: Path,
    clips: tuple[Path, ...],
    machine: str | None,
    section: int | None,
    out: Path | None,
    window: float | None,
    hop: float | None,
    plot: Path | None,
    rule: Rule | None,
    false_alarms: float | None,
    device: str,
    as_json: bool,
) -> None:
    """Score recordings, or all recordings in folders, with a packaged ensemble.

    For recordings of machines that the model knows; `tutti export` packages one.

    \b
    Example: tutti score model clip.wav --machine fan
             tutti score model night.wav --machine fan --window 10 --plot night.svg
    """
    if window is None and (hop or plot):
        raise InputError("--hop and --plot belong to --window, which scores a long recording over time")
    _check_target(out, _TABLES)
    _check_target(plot, _PICTURES)
    ensemble = _open(model, device)
    chosen = {"rule": rule, "false_alarms": false_alarms}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    ensemble.manifest = ensemble.manifest.model_copy(update=chosen)
    if window is None:
        from orchestrator.model.recordings import score_clips

        table = score_clips(ensemble, clips, machine, section)
    else:
        table = _over_time(ensemble, clips, machine, section, window, hop, plot)
    if out is not None:
        _write(table, out)
    if as_json:
        click.echo(json.dumps({"scores": table.to_pylist()}))
    else:
        _print(table)


def _check_target(path: Path | None, suffixes: tuple[str, ...]) -> None:
    """Refuse before minutes of work a file that could not be written after them."""
    if path is None:
        return
    if path.suffix not in suffixes:
        raise InputError(f"{path}: give a file that ends in {', '.join(suffixes[:-1])} or {suffixes[-1]}")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}; make it first")


def _open(model: Path, device: str) -> Ensemble:
    click.echo(f"loading {model}", err=True)
    from orchestrator.model.ensemble import Ensemble
    from orchestrator.model.manifest import warn_of_other_version

    warn_of_other_version(model)
    return Ensemble(model, device)


def _over_time(
    ensemble: Ensemble,
    clips: tuple[Path, ...],
    machine: str | None,
    section: int | None,
    window: float,
    hop: float | None,
    plot: Path | None,
) -> pa.Table:
    from orchestrator.model.recordings import section_of
    from orchestrator.model.streaming import plot_over_time, score_over_time

    machine = machine or ensemble.only_machine
    if len(clips) != 1 or machine is None:
        raise InputError("--window scores one recording of one machine; give one CLIP and --machine")
    section = section_of(clips[0]) if section is None else section
    table = score_over_time(ensemble, machine, clips[0], window, hop or window / 2, section)
    if plot is not None:
        plot_over_time(table, f"{machine}: {clips[0].name}", plot)
    return table


def _write(table: pa.Table, path: Path) -> None:
    import pyarrow.csv
    import pyarrow.parquet

    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        flat = table.drop_columns("contributions") if "contributions" in table.column_names else table
        pyarrow.csv.write_csv(flat, path)


def _print(table: pa.Table) -> None:
    columns = [name for name in table.column_names if name != "contributions"]
    print_table(tuple(columns), [tuple(row.values()) for row in table.select(columns).to_pylist()])
    if table.num_rows == 1 and "contributions" in table.column_names:
        (parts,) = table["contributions"].to_pylist()
        ordered = sorted((part["contribution"], part["branch"]) for part in parts)
        print_table(("branch", "contribution"), [(branch, value) for value, branch in reversed(ordered)])


@click.command()
@click.argument("model", type=_existing)
@click.argument("clips", nargs=-1, required=True, type=_existing, metavar="CLIP...")
@click.option("--machine", required=True, help="Name of the new machine.")
@click.option("--section", type=click.IntRange(min=0), default=0, show_default=True, help="Of the machine.")
@click.option("--out", required=True, type=_path, help="Folder of the new model; must not exist.")
def enrol(model: Path, clips: tuple[Path, ...], machine: str, section: int, out: Path) -> None:
    """Add a machine to a packaged ensemble from normal recordings of it; nothing is trained.

    For a machine that was not in the data of the run.

    \b
    Example: tutti enrol model normal/*.wav --machine press --out model2
    """
    click.echo(f"loading {model}", err=True)
    from orchestrator.model.enrolment import enrol as add
    from orchestrator.model.manifest import warn_of_other_version
    from orchestrator.model.recordings import recordings

    warn_of_other_version(model)
    threshold = add(model, machine, recordings(clips), out, section)
    click.echo(f"{out}: {machine} section {section} enrolled; scores above {threshold:.3f} are anomalies")
