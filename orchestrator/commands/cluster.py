"""Commands that need a cluster: submit, follow, cancel."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from orchestrator.commands.options import backbone_option, run_options, set_option, systems_argument

_dashboard = click.option("--address", required=True, help="Address of the cluster's dashboard: http://HOST:8265.")


@click.command()
@systems_argument
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Data set, as a path on the cluster.")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="RUN_DIR",
    help="Run folder, as a path on the cluster.",
)
@backbone_option
@set_option
@_dashboard
@click.option("--no-follow", is_flag=True, help="Return when the job is accepted.")
@run_options
def submit(systems: tuple[str, ...], address: str, no_follow: bool, **options: Any) -> None:
    """Run systems as a job on a cluster, and follow its log; Ctrl-C stops following, not the job.

    This machine's code and system files are uploaded; data, checkpoints and results stay on the cluster's storage.

    \b
    Example: tutti submit s2 --address http://127.0.0.1:8265 --data /shared/dcase2026 --out /shared/runs/a
    """
    from cluster.jobs import Jobs
    from orchestrator.submit import run_command, shipped
    from orchestrator.system import load_systems

    load_systems(systems, options["backbone"], options["overrides"])  # a mistake is told here, not minutes later there
    jobs = Jobs(address)
    with shipped(systems) as (folder, names):
        job_id = jobs.submit(run_command(names, options), folder)
    click.echo(job_id)
    if not no_follow:
        _follow(jobs, job_id)


@click.command()
@click.argument("job_id", metavar="JOB")
@_dashboard
def follow(job_id: str, address: str) -> None:
    """Follow the log of a submitted job from its start; the exit code is the job's.

    \b
    Example: tutti follow tutti-1a2b3c --address http://127.0.0.1:8265
    """
    from cluster.jobs import Jobs

    _follow(Jobs(address), job_id)


@click.command()
@click.argument("job_id", metavar="JOB")
@_dashboard
def cancel(job_id: str, address: str) -> None:
    """Stop a submitted job; what it has finished is kept, and submitting it again continues.

    \b
    Example: tutti cancel tutti-1a2b3c --address http://127.0.0.1:8265
    """
    from cluster.jobs import Jobs

    click.echo(f"{job_id}: {Jobs(address).cancel(job_id)}")


def _follow(jobs: Any, job_id: str) -> None:
    try:
        code = jobs.follow(job_id, lambda text: click.echo(text, nl=False, err=True))
    except KeyboardInterrupt:
        click.echo(
            f"\nstill running: `tutti follow {job_id} --address {jobs.address}` goes on, `tutti cancel` stops it",
            err=True,
        )
        sys.exit(130)
    sys.exit(code)
