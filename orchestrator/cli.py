"""The command line. Heavy packages are imported inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import errno
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from scoring.errors import InputError

# Faults of the place a user has chosen, not of the program.
_NOT_OURS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


class _Commands(click.Group):
    """Turns a user's error into one line and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            message = str(error)
        except OSError as error:
            if error.errno not in _NOT_OURS:
                raise
            message = f"{error.filename}: {error.strerror}; make room or give another folder"
        click.echo(f"Error: {message}", err=True)
        return ctx.exit(2)


_data = click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="Data set in the challenge's layout."
)
_backbone = click.option("--backbone", help="BEATs checkpoint (path or URI) for every branch, or `tiny`.")
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_tracking = click.option("--tracking-uri", help="MLflow store; default: a database in the output folder.")


@click.group(cls=_Commands)
@click.version_option(package_name="tutti-asd")
def main() -> None:
    """Train BEATs branches, score them, and fuse them into systems that hold on unheard machines.

    \b
    tutti demo                                  the whole chain on generated data
    tutti plan s2 --data DIR                    what would be trained
    tutti run s1 s2 --data DIR --out runs/a     train what is missing, fuse, deliver
    tutti fuse --tables DIR --out fused         fuse score tables made elsewhere
    """
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    for package in ("orchestrator", "branches", "scoring", "fusion", "cluster"):
        logging.getLogger(package).setLevel(logging.INFO)


def _run_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        _json,
        click.option("--checkpoint-seconds", type=click.FloatRange(min=0), default=60.0, show_default=True),
        click.option("--gpus-per-branch", type=click.FloatRange(min=0), help="Default: 1 where there are GPUs."),
        click.option("--cpus-per-branch", type=click.IntRange(min=1), default=1, show_default=True),
        _tracking,
        click.option("--address", default="local", show_default=True, help="Ray cluster, or `local` to start one."),
    ):
        command = option(command)
    return command


@main.command()
@click.argument("systems", nargs=-1, required=True, metavar="SYSTEM...")
@_data
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for everything the run makes.")
@_backbone
@_run_options
def run(systems: tuple[str, ...], data: Path, out: Path, backbone: str | None, as_json: bool, **options: Any) -> None:
    """Train what is missing, score, fuse and deliver. Running it again continues.

    \b
    Example: tutti run s1 s2 --data /data/dcase2026 --out runs/a --backbone BEATs_iter3.pt
    """
    _run(systems, data, out, backbone, as_json, options)


@main.command()
@click.option("--out", type=click.Path(path_type=Path), default="runs/demo", show_default=True)
@_run_options
def demo(out: Path, as_json: bool, **options: Any) -> None:
    """Run the whole chain on a generated data set: no GPU, no download.

    \b
    Example: tutti demo --out runs/demo
    """
    data = out / "data"
    if not data.exists():
        from branches.synthetic import DEMO, write_dataset

        logging.getLogger(__name__).info("generating a data set in %s", data)
        unfinished = _emptied(out / "data.tmp")
        write_dataset(unfinished, DEMO)
        unfinished.rename(data)
    _run(("demo",), data, out, None, as_json, options)


def _emptied(folder: Path) -> Path:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _run(
    systems: tuple[str, ...], data: Path, out: Path, backbone: str | None, as_json: bool, options: dict[str, Any]
) -> None:
    from orchestrator.pipeline import BranchesFailed, Place, RunInterrupted, run
    from orchestrator.result import summary
    from orchestrator.spec import load_systems

    specs = load_systems(systems, backbone)
    try:
        results = run(specs, Place(data, out, **options))
    except BranchesFailed as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(130 if isinstance(error, RunInterrupted) else 1)
    if as_json:
        click.echo(json.dumps({"out": str(out.resolve()), "systems": results}))
        return
    for name, result in results.items():
        heading, rows = summary(result)
        click.echo(f"{name}: {heading}")
        _print_table(("Omega, %", "in-sample", "LOMO"), rows)
    click.echo(f"report: {out / 'report.html'}\nsubmission: {out / 'submission'}")


@main.command()
@click.argument("systems", nargs=-1, required=True, metavar="SYSTEM...")
@_data
@_backbone
@click.option("--out", type=click.Path(path_type=Path), help="Look up what is finished in this run's folder.")
@_tracking
@_json
def plan(
    systems: tuple[str, ...],
    data: Path,
    backbone: str | None,
    out: Path | None,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """Show the branches that the systems need, what is done and what the rest may cost. Runs nothing.

    \b
    Example: tutti plan s2 --data /data/dcase2026 --backbone BEATs_iter3.pt --out runs/a
    """
    from orchestrator.overview import overview
    from orchestrator.spec import load_systems

    result = overview(load_systems(systems, backbone), data, out, tracking_uri)
    if as_json:
        click.echo(json.dumps(result))
        return
    states = {True: "done", False: "to train", None: "?"}
    rows = [
        (b["name"], ",".join(b["systems"]), b["branch_id"], states[b["done"]], b["clip_passes"], b["pflop"])
        for b in result["branches"]
    ]
    _print_table(("branch", "systems", "id", "state", "clip passes", "PFLOP"), rows)
    click.echo(
        f"{len(rows)} branches, {result['to_train']} to train: about {result['gpu_hours']:.2f} GPU hours "
        f"at {result['assumed_tflops']} TFLOP/s"
    )
    for note in result["notes"]:
        click.echo(note, err=True)


@main.group()
def data() -> None:
    """Generate and check data sets."""


@data.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--size", type=click.Choice(["demo", "challenge"]), default="demo", show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def synth(folder: Path, size: str, seed: int) -> None:
    """Write a generated data set in the layout of DCASE 2026.

    \b
    Example: tutti data synth /tmp/generated --seed 1
    """
    from branches.synthetic import DEFAULT, DEMO, write_dataset

    clips = write_dataset(folder, DEMO if size == "demo" else DEFAULT, seed)
    click.echo(f"{clips} clips in {folder}")


@data.command()
@click.argument("folder", type=click.Path(path_type=Path))
@_json
def check(folder: Path, as_json: bool) -> None:
    """Read every clip of a data set; print what is in it and what is wrong. Exits with 2 if anything is.

    \b
    Example: tutti data check /data/dcase2026
    """
    from branches.audio import problems_of
    from branches.dataset import counts, read_index

    index = read_index(folder)
    machines, problems = counts(index), problems_of(folder, index)
    if as_json:
        click.echo(json.dumps({"clips": index.num_rows, "machines": machines, "problems": problems}))
    else:
        kinds = list(dict.fromkeys(kind for machine in machines.values() for kind in machine))
        _print_table(("machine", *kinds), [(name, *(m.get(k, 0) for k in kinds)) for name, m in machines.items()])
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        raise InputError(f"{folder}: {len(problems)} of {index.num_rows} clips cannot be used")


@main.command()
@click.argument("system", required=False)
@click.option(
    "--tables", type=click.Path(path_type=Path), help="Folder with index.csv, or a run's; SYSTEM for the latter."
)
@click.option("--tracking-uri", help="MLflow store to take the tables of finished branches from.")
@click.option("--experiment", help="Its experiment, by name.")
@click.option("--run", help="Id of one `tutti run` in it: take only its branches.")
@_backbone
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for fused.parquet and result.json.")
@click.option(
    "--weights", type=click.Path(path_type=Path), help="Apply the weights of this result.json; reads no label."
)
@click.option(
    "--transductive-normalisation",
    "transductive",
    is_flag=True,
    help="Normalise by the test clips, for tables without training clips; against the challenge's rules.",
)
@click.option("--address", help="Ray cluster, or `local` to start one; default: one core of this process.")
@_json
def fuse(as_json: bool, **options: Any) -> None:
    """Fuse score tables; they may have been made elsewhere. Running it again continues.

    Without SYSTEM the tree is read from index.csv: the columns table (file name without .parquet), family
    (sub-system), config (configuration) and seed.

    \b
    Example: tutti fuse --tables scores/dev --out fused
             tutti fuse --weights fused/result.json --tables scores/eval --out fused_eval
    """
    from orchestrator.fuse_command import Request, fuse_tables
    from orchestrator.result import summary

    result = fuse_tables(Request(**options))
    if as_json:
        click.echo(json.dumps(result))
    elif "delivered" in result:
        heading, rows = summary(result)
        click.echo(heading)
        _print_table(("Omega, %", "in-sample", "LOMO"), rows)
    click.echo(f"{options['out'] / 'fused.parquet'}", err=as_json)


@main.command()
@click.argument("tables", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="TABLE...")
@_json
def metrics(tables: tuple[Path, ...], as_json: bool) -> None:
    """Print the official metrics of score tables, in per cent, with 95 % bootstrap intervals.

    Precision, recall and F1 are of decisions at the thresholds from the table's training rows, where it has any.

    \b
    Example: tutti metrics runs/a/systems/s2/fused.parquet
    """
    found = {str(path): _metrics_of(path) for path in tables}
    if as_json:
        click.echo(json.dumps({"tables": found} if len(found) > 1 else next(iter(found.values()))))
        return
    values = {"auc_source": "AUC source", "auc_target": "AUC target", "pauc": "pAUC", "hmean": "hmean"}
    for name, m in found.items():
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
        _print_table((name, *values.values(), *extra.values()), rows)
        if m["transductive"]:
            click.echo(f"{name}: statistics of test clips have reached these scores", err=True)


def _metrics_of(path: Path) -> dict[str, Any]:
    from dataclasses import asdict

    from scoring.bootstrap import bootstrap_intervals
    from scoring.decisions import decision_metrics, thresholds
    from scoring.metrics import official_metrics
    from scoring.table import is_transductive, read_table

    table = read_table(path)
    metrics = official_metrics(table).as_dict()
    try:
        decided = {name: asdict(d) for name, d in decision_metrics(table, thresholds(table)).items()}
    except InputError as error:
        click.echo(f"{path}: no decisions: {error}", err=True)
        decided = {}
    intervals = bootstrap_intervals(table).as_dict()
    return {**metrics, "ci": intervals, "decisions": decided, "transductive": is_transductive(table)}


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    return _cell(value) if interval is None else f"{value:.2f} ({interval[0]:.1f}–{interval[1]:.1f})"


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
def report(folder: Path) -> None:
    """Write a run's HTML report anew from its results.

    \b
    Example: tutti report runs/a
    """
    from orchestrator.report import write_report

    click.echo(write_report(folder))


@main.command()
@click.option("--data", type=click.Path(path_type=Path), help="Data set to look at, too.")
@click.option("--out", type=click.Path(path_type=Path), default=".", help="Where a run would write.")
@click.option("--address", default="local", show_default=True, help="Ray cluster, or `local` to start one.")
@_tracking
@_json
def doctor(data: Path | None, out: Path, address: str, tracking_uri: str | None, as_json: bool) -> None:
    """Look at installation, GPUs, Ray, MLflow, disk and data; changes nothing. Exits with 2 if there is a problem.

    \b
    Example: tutti doctor --data /data/dcase2026 --out runs/a
    """
    from orchestrator.doctor import Subject, diagnose

    checks = []
    for check in diagnose(Subject(data, out, address, tracking_uri)):
        checks.append(check)
        if not as_json:
            click.echo(f"{check.state:<8} {check.name}: {check.text}" + (f"; {check.remedy}" if check.remedy else ""))
    if as_json:
        click.echo(json.dumps({"checks": [asdict(check) for check in checks]}))
    if problems := [check.name for check in checks if check.state == "problem"]:
        raise InputError(f"{len(problems)} problems: {', '.join(problems)}")


@main.group()
def submission() -> None:
    """Make and check the challenge's submission package."""


@submission.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="RUN_DIR")
@click.argument("systems", nargs=-1, metavar="[SYSTEM...]")
@click.option("--out", type=click.Path(path_type=Path), help="Default: package, in the run's folder.")
@click.option(
    "--label", help="Surname_Affiliation_task2 of the corresponding author; default: as in the authors' file."
)
@click.option(
    "--meta", type=click.Path(path_type=Path), help="Authors' file; default: OUT/authors.yaml, made as a form."
)
@_json
def make(
    folder: Path, systems: tuple[str, ...], out: Path | None, label: str | None, meta: Path | None, as_json: bool
) -> None:
    """Pack at most four systems of a finished run: tables, meta files, one zip file.

    \b
    Example: tutti submission make runs/a s1 s3 --label Jiang_THU_task2
    """
    from orchestrator.submission.check import check_package
    from orchestrator.submission.package import make_package

    package = make_package(folder, systems, out, label, meta)
    findings = check_package(package)
    if as_json:
        click.echo(json.dumps({"package": str(package.resolve()), **asdict(findings)}))
        return
    click.echo(package)
    for line in [*findings.errors, *findings.warnings]:
        click.echo(f"to do: {line}", err=True)


@submission.command("check")
@click.argument("package", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="Data set whose test clips must be in the package.")
@_json
def check_submission(package: Path, data: Path | None, as_json: bool) -> None:
    """Print everything that is wrong with a package, a folder or a zip file. Exits with 2 if anything is.

    \b
    Example: tutti submission check runs/a/package/Jiang_THU_task2.zip --data /data/dcase2026
    """
    from orchestrator.submission.check import check_package

    findings = check_package(package, data)
    if as_json:
        click.echo(json.dumps(asdict(findings)))
    else:
        for line in [*(f"error: {e}" for e in findings.errors), *(f"warning: {w}" for w in findings.warnings)]:
            click.echo(line)
    counts = f"{len(findings.errors)} errors, {len(findings.warnings)} warnings"
    if findings.errors:
        raise InputError(f"{package}: {counts}")
    click.echo(f"{package}: {counts}", err=True)


@main.command()
@click.option("--out", required=True, type=click.Path(path_type=Path, exists=True), help="A run's folder.")
@click.option("--port", default=5000, show_default=True)
def ui(out: Path, port: int) -> None:
    """Open the MLflow UI on a run's store, on the loopback interface.

    \b
    Example: tutti ui --out runs/a
    """
    database = (out / "mlflow.db").resolve()
    if not database.exists():
        raise InputError(f"{database}: no such store; a run with --tracking-uri is shown by that server")
    store = f"sqlite:///{database}"
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store, "--port", str(port)]
    sys.exit(subprocess.call([*command, "--host", "127.0.0.1"]))


def _print_table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """Columns as wide as their widest cell: the first to the left, the others to the right."""
    cells = [header, *[tuple(map(_cell, row)) for row in rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        first, *others = (
            f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        click.echo("  ".join([first, *others]).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
