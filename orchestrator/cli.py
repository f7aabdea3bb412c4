"""The command line. Heavy packages are imported inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import errno
import json
import logging
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from orchestrator.cluster_commands import cancel, follow, submit, sync
from orchestrator.options import address_option, backbone_option, data_option, json_option, run_options
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
        except KeyboardInterrupt:
            click.echo("Error: interrupted; what is finished is kept, run again to continue", err=True)
            return ctx.exit(130)
        click.echo(f"Error: {message}", err=True)
        return ctx.exit(2)


@click.group(cls=_Commands)
@click.version_option(package_name="tutti-asd")
def main() -> None:
    """Train BEATs branches, score them, and fuse them into systems that hold on unheard machines.

    \b
    tutti demo                                  the whole chain on generated data
    tutti plan s2 --data DIR                    what would be trained
    tutti run s1 s2 --data DIR --out runs/a     train what is missing, fuse, deliver
    """
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    for package in ("orchestrator", "branches", "scoring", "fusion", "cluster"):
        logging.getLogger(package).setLevel(logging.INFO)


@main.command()
@click.argument("systems", nargs=-1, required=True, metavar="SYSTEM...")
@data_option
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for everything the run makes.")
@backbone_option
@address_option
@run_options
def run(systems: tuple[str, ...], data: Path, out: Path, backbone: str | None, as_json: bool, **options: Any) -> None:
    """Train what is missing, score, fuse and deliver. Running it again continues.

    \b
    Example: tutti run s1 s2 --data /data/dcase2026 --out runs/a --backbone BEATs_iter3.pt
    """
    _run(systems, data, out, backbone, as_json, options)


@main.command()
@click.option("--out", type=click.Path(path_type=Path), default="runs/demo", show_default=True)
@address_option
@run_options
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
    from orchestrator.spec import load_systems

    specs = load_systems(systems, backbone)
    # A cluster stops a job with SIGTERM, and Ray blocks SIGINT in its jobs; what stops Tune cleanly is SIGINT.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        results = run(specs, Place(data, out, **options))
    except BranchesFailed as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(130 if isinstance(error, RunInterrupted) else 1)
    if as_json:
        click.echo(json.dumps({"out": str(out.resolve()), "systems": results}))
        return
    for name, result in results.items():
        delivered = result["delivered"]
        click.echo(f"{name}: {delivered['method']} delivered ({delivered['why']})")
        rows = [(method, values["in_sample"], values["lomo"]) for method, values in result["methods"].items()]
        rows.append(("delivered", delivered["in_sample"], delivered["lomo"]))
        _print_table(("Omega, %", "in-sample", "LOMO"), rows)
    click.echo(f"report: {out / 'report.html'}\nsubmission: {out / 'submission'}")


@main.command()
@click.argument("systems", nargs=-1, required=True, metavar="SYSTEM...")
@data_option
@backbone_option
@click.option("--out", type=click.Path(path_type=Path), help="Look up what is finished in this run's folder.")
@json_option
def plan(
    systems: tuple[str, ...],
    data: Path,
    backbone: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Show the branches that the systems need, what is done and what the rest may cost. Runs nothing.

    \b
    Example: tutti plan s2 --data /data/dcase2026 --backbone BEATs_iter3.pt --out runs/a
    """
    from orchestrator.overview import overview
    from orchestrator.spec import load_systems

    result = overview(load_systems(systems, backbone), data, out)
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


for command in (submit, follow, cancel, sync):
    main.add_command(command)


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
@json_option
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
@click.argument("tables", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="TABLE...")
@json_option
def metrics(tables: tuple[Path, ...], as_json: bool) -> None:
    """Print the official metrics of score tables, in per cent.

    \b
    Example: tutti metrics runs/a/systems/s2/fused.parquet
    """
    from scoring.metrics import official_metrics
    from scoring.table import read_table

    found = {str(path): official_metrics(read_table(path)) for path in tables}
    if as_json:
        objects = {name: m.as_dict() for name, m in found.items()}
        click.echo(json.dumps({"tables": objects} if len(objects) > 1 else next(iter(objects.values()))))
        return
    for name, m in found.items():
        rows = [(machine, v.auc_source, v.auc_target, v.pauc, v.hmean) for machine, v in m.machines.items()]
        _print_table((name, "AUC source", "AUC target", "pAUC", "hmean"), [*rows, ("Omega", "", "", "", m.omega)])


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
