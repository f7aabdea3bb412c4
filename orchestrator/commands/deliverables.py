"""Commands on a finished run: report, submission make and check, ui."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from orchestrator.commands.options import existing_path, ground_truth_option, json_option, path_type
from scoring.errors import InputError, counted


@click.command()
@click.argument("folder", type=path_type, metavar="RUN_DIR")
@click.option(
    "--audio",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Add the N worst false alarms and misses to hear.",
)
@click.option("--data", type=path_type, help="Data set of the recordings, if it was moved since the run.")
@ground_truth_option
def report(folder: Path, audio: int, data: Path | None, ground_truth: Path | None) -> None:
    """Write a run's HTML report from its results.

    `tutti run` has written one; again for recordings to hear, or with labels that came later.

    \b
    Example: tutti report runs/a
             tutti report runs/a --audio 5
    """
    click.echo(f"writing the report of {folder}", err=True)
    from orchestrator.report.page import write_report

    click.echo(write_report(folder, audio=audio, data=data, ground_truth=ground_truth))


@click.group()
def submission() -> None:
    """Make and check the challenge's submission package."""


@submission.command()
@click.argument("folder", type=path_type, metavar="RUN_DIR")
@click.argument("systems", nargs=-1, metavar="[SYSTEM...]")
@click.option("--out", type=path_type, help="Default: RUN_DIR/package.")
@click.option("--label", help="Surname_Affiliation_task2 of the corresponding author; default: from the authors' file.")
@click.option("--meta", type=path_type, help="Authors' file; default: OUT/authors.yaml, created as a form.")
@json_option
def make(
    folder: Path, systems: tuple[str, ...], out: Path | None, label: str | None, meta: Path | None, as_json: bool
) -> None:
    """Pack at most four systems of a finished run: tables, meta files, one zip file.

    When the run has scored the evaluation clips.

    \b
    Example: tutti submission make runs/a s1 s3 --label Jiang_THU_task2
    """
    click.echo(f"packing {folder}", err=True)
    from orchestrator.submission.check import UNFILLED, check_package
    from orchestrator.submission.package import AUTHORS_FORM, make_package

    package = make_package(folder, systems, out, label, meta)
    findings = check_package(package)
    if as_json:
        click.echo(json.dumps({"package": str(package.resolve()), **asdict(findings)}))
        return
    click.echo(package)
    for line in [*findings.errors, *findings.warnings]:
        click.echo(f"to do: {line}", err=True)
    if any(UNFILLED in line for line in findings.errors):
        click.echo(f"next: fill in {meta or package.with_name(AUTHORS_FORM)} and run this again", err=True)


@submission.command("check")
@click.argument("package", type=path_type)
@click.option("--data", type=path_type, help="Data set whose test clips must be in the package.")
@json_option
def check_submission(package: Path, data: Path | None, as_json: bool) -> None:
    """Print everything that is wrong with a package, a folder or a zip file. Exits with 2 if anything is.

    Before it is sent; also for packages of other tools.

    \b
    Example: tutti submission check runs/a/package/Jiang_THU_task2.zip --data /data/dcase2026
    """
    from orchestrator.submission.check import check_package

    findings = check_package(package, data)
    kinds = {"error": findings.errors, "warning": findings.warnings}
    if as_json:
        click.echo(json.dumps(asdict(findings)))
    else:
        for line in (f"{name}: {line}" for name, lines in kinds.items() for line in lines):
            click.echo(line)
    counts = ", ".join(counted(len(lines), name) for name, lines in kinds.items())
    if findings.errors:
        raise InputError(f"{package}: {counts}")
    click.echo(f"{package}: {counts}", err=True)


@click.command()
@click.option("--out", required=True, type=existing_path, metavar="RUN_DIR", help="Run folder.")
@click.option("--port", default=5000, type=click.IntRange(1, 65535), help="Port on this machine.")
def ui(out: Path, port: int) -> None:
    """Serve the MLflow UI on a run's store, on the loopback interface, and print where to open it.

    To compare branches and systems in a browser.

    \b
    Example: tutti ui --out runs/a
    """
    from orchestrator.tracking.ui import serve

    sys.exit(serve(out, port, click.echo))
