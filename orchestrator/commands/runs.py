"""Commands that plan and run systems: run, demo, submit, plan, doctor."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from orchestrator.commands.options import (
    address_option,
    json_option,
    path_type,
    print_result,
    print_table,
    run_folder_option,
    run_options,
    set_option,
    system_options,
    tracking_option,
)
from scoring.atomic import atomic_folder
from scoring.errors import InputError, counted

log = logging.getLogger(__name__)


@click.command()
@system_options
@run_folder_option
@address_option
@run_options
def run(
    systems: tuple[str, ...], backbone: str | None, overrides: tuple[str, ...], as_json: bool, **options: Any
) -> None:
    """Train what is missing, score, fuse and deliver. Running it again continues.

    On this machine, or on a cluster that it is a node of; for a cluster elsewhere there is `tutti submit`.

    \b
    Example: tutti run s1 s2 --data /data/dcase2026 --out runs/a
    """
    log.info("reading %s", options["data"])
    from orchestrator.fuse.result import below_baseline
    from orchestrator.ledger.storage import StorageAway
    from orchestrator.run import run
    from orchestrator.system import load_systems
    from orchestrator.tracking.ui import where_shown
    from orchestrator.training.job import RunOptions
    from orchestrator.training.launch import BranchesFailed

    _stop_on_signals()
    try:
        results = run(load_systems(systems, backbone, overrides), RunOptions(**options))
    except StorageAway as error:
        raise InputError(str(error)) from error
    except BranchesFailed as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    out = options["out"]
    if as_json:
        click.echo(json.dumps({"out": str(out.resolve()), "systems": results}))
        return
    for name, result in results.items():
        print_result(result, name)
    click.echo(f"report: {out / 'report.html'}")
    if submitted := [name for name in results if any((out / "submission" / name).iterdir())]:
        click.echo(f"submission: {', '.join(str(out / 'submission' / name) for name in submitted)}")
    measured = any(result["omega"] is not None for result in results.values())
    click.echo(
        f"next: {where_shown(options['tracking_uri'], out)}"
        if measured
        else f"next: tutti export {out} {next(iter(results))} --out model"
    )
    for warning in filter(None, map(below_baseline, results.values())):
        click.echo(warning)


def _stop_on_signals() -> None:
    """Let SIGTERM, and SIGHUP unless `nohup` had it ignored, stop the run as Ctrl-C does."""
    # Ray blocks SIGINT in its jobs, and answers SIGTERM by ending the process as it stands.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    terminals = [stream.fileno() for stream in (sys.stdout, sys.stderr) if stream.isatty()]

    def hang_up(*_: Any) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it may come from the shell and from the kernel
        for terminal in terminals:
            if not os.isatty(terminal):  # it is closed, and writing to it would fail
                os.dup2(os.open(os.devnull, os.O_WRONLY), terminal)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, hang_up)


@click.command()
@click.option("--out", type=path_type, default="runs/demo", metavar="RUN_DIR", help="Run folder.")
@set_option
@address_option
@run_options
def demo(out: Path, **options: Any) -> None:
    """Run the whole chain on a generated data set: no GPU, no download.

    To see whether an installation works, and what a run leaves behind.

    \b
    Example: tutti demo --out runs/demo
    """
    data = out / "data"
    if not data.exists():
        from branches.data.synthetic import DEMO, write_dataset
        from orchestrator.training.process import check_installation

        check_installation()
        log.info("generating a data set in %s", data)
        with atomic_folder(data) as unfinished:
            write_dataset(unfinished, DEMO)
    click.get_current_context().invoke(run, systems=("demo",), data=data, out=out, **options)


@click.command()
@system_options
@run_folder_option
@click.option("--address", required=True, help="Address of the cluster's dashboard: http://HOST:8265.")
@click.option("--no-follow", is_flag=True, help="Return when the job is accepted.")
@run_options
def submit(systems: tuple[str, ...], address: str, no_follow: bool, **options: Any) -> None:
    """Run systems as a job on a cluster, and follow its log; Ctrl-C stops following, not the job.

    For a machine that is no node of the cluster, and may be switched off meanwhile. Its code and system files are
    uploaded; data, checkpoints and results stay on the cluster, and their paths are those that all nodes see.

    \b
    Example: tutti submit s2 --address http://127.0.0.1:8265 --data /shared/dcase2026 --out /shared/runs/a
    """
    from cluster.jobs import follow_job, submit_job
    from orchestrator.submit import run_command, shipped
    from orchestrator.system import load_systems

    load_systems(systems, options["backbone"], options["overrides"])  # a mistake is told here, not minutes later there
    with shipped(systems) as (folder, names):
        job_id = submit_job(address, run_command(names, options), folder)
    click.echo(job_id)
    job = f"{job_id} --address {address}"
    click.echo(f"`ray job logs -f {job}` follows its log, `ray job stop {job}` stops it", err=True)
    if no_follow:
        return
    try:
        sys.exit(follow_job(address, job_id, lambda text: click.echo(text, nl=False, err=True)))
    except KeyboardInterrupt:
        click.echo(f"\nthe job goes on; `ray job logs -f {job}` takes its log up", err=True)
        sys.exit(130)


@click.command()
@system_options
@click.option("--out", type=path_type, metavar="RUN_DIR", help="Run folder with finished branches.")
@json_option
def plan(
    systems: tuple[str, ...],
    data: Path,
    backbone: str | None,
    overrides: tuple[str, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Show the systems' score tables and trainings, which are done, and the cost of the others. Runs nothing.

    Before a long run.

    \b
    Example: tutti plan s2 --data /data/dcase2026 --out runs/a
    """
    from orchestrator.cost import ASSUMED_TFLOPS, duration
    from orchestrator.overview import overview
    from orchestrator.system import load_systems

    result = overview(load_systems(systems, backbone, overrides), data, out)
    if as_json:
        click.echo(json.dumps(result))
        return
    states = {True: "done", False: "to do", None: "?"}
    costs = {b["branch_id"]: f"{b['pflop']:.3g}" for b in result["branches"]}  # said once of a training
    rows = [
        (t["name"], ",".join(t["systems"]), t["branch_id"], states[t["done"]], costs.pop(t["branch_id"], "shared"))
        for t in result["tables"]
    ]
    sets = [("generator of clips", "", g["id"], "to do", f"{g['pflop']:.3g}") for g in result["generated"]]
    print_table(("table", "systems", "training", "state", "PFLOP"), [*rows, *sets])
    trained = sum(b["trained"] for b in result["branches"])
    to_do = sum(not t["done"] for t in result["tables"])
    cost = (
        f"about {duration(3600 * result['gpu_hours'])} of a GPU at {ASSUMED_TFLOPS} TFLOP/s, "
        f"or {duration(3600 * result['cpu_hours'])} of a CPU core; {result['disk_gb']:.1f} GB of disk"
    )
    left = f"{to_do} to do: {cost}" if to_do else "nothing to do"
    click.echo(f"{counted(trained, 'training')}, {counted(len(rows), 'table')}, {left}")
    for note in result["notes"]:
        click.echo(note, err=True)


@click.command()
@click.option("--data", type=path_type, help="Data set to check as well.")
@click.option("--out", type=path_type, default=".", metavar="RUN_DIR", help="Folder for a run's output.")
@address_option
@tracking_option
@json_option
def doctor(data: Path | None, out: Path, address: str, tracking_uri: str | None, as_json: bool) -> None:
    """Check installation, GPUs, Ray, MLflow, disk and data; changes nothing. Exits with 2 if there is a problem.

    Before a first run, and when something does not work.

    \b
    Example: tutti doctor --data /data/dcase2026 --out runs/a
    """
    from orchestrator.doctor import diagnose

    checks = []
    click.echo("checking the installation; torch and Ray take some seconds", err=True)
    for check in diagnose(data, out, address, tracking_uri):
        checks.append(check)
        if not as_json:
            click.echo(f"{check.state:<8} {check.name}: {check.text}" + (f"; {check.remedy}" if check.remedy else ""))
    if as_json:
        click.echo(json.dumps({"checks": [asdict(check) for check in checks]}))
    if problems := [check.name for check in checks if check.state == "problem"]:
        raise InputError(f"{counted(len(problems), 'problem')}: {', '.join(problems)}")
