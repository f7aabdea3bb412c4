"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

_SYSTEMS = Path(__file__).parent.parent / "systems"  # a shell that completes a word waits for no imports


def complete_systems(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Built-in systems, and files where there is more to it than a name."""
    names = [path.stem for path in sorted(_SYSTEMS.glob("*.yaml")) if path.stem.startswith(begun)]
    return [*map(CompletionItem, names)] or [CompletionItem(begun, type="file")]


systems_argument = click.argument(
    "systems", nargs=-1, required=True, metavar="SYSTEM...", shell_complete=complete_systems
)
data_option = click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="Data set in the challenge's layout."
)
backbone_option = click.option(
    "--backbone", help="BEATs checkpoint (path or URI) for every branch, or built in: `small`, `tiny`."
)
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a setting of every configuration, e.g. branch.training.steps=30; repeatable.",
)
ground_truth_option = click.option(
    "--ground-truth",
    type=click.Path(path_type=Path),
    help="Folder with the organisers' ground_truth_*.csv: labels published later, only for reporting.",
)
run_folder_option = click.option(
    "--out",
    required=True,
    metavar="RUN_DIR",
    type=click.Path(path_type=Path),
    help="Run folder for all results; an existing run continues.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
tracking_option = click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    show_envvar=True,
    help="MLflow store; default: a database in the run folder.",
)
address_option = click.option(
    "--address",
    default="local",
    show_default=True,
    envvar="RAY_ADDRESS",  # which Ray itself sets inside a job
    show_envvar=True,
    help="`local` starts Ray here; `auto` uses the cluster that this machine or job belongs to; also host:port, ray://host:10001.",
)


def _one_gpu_at_most(context: click.Context, parameter: click.Parameter, gpus: float | None) -> float | None:
    if gpus is not None and gpus > 1:
        raise click.BadParameter("a branch uses a single GPU; give 1 or less (more GPUs run more branches at once)")
    return gpus


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options of every command that trains, but `--address`."""
    for option in (
        json_option,
        click.option(
            "--fuse-incomplete", is_flag=True, help="If branches fail, fuse the others; the exit code is still 1."
        ),
        click.option(
            "--compile",
            "compiled",
            is_flag=True,
            help="Compile trained encoders: slower start, faster steps.",
        ),
        click.option(
            "--checkpoint-seconds",
            type=click.FloatRange(min=0),
            default=600.0,
            show_default=True,
            help="Interval between checkpoints of a branch; training goes on meanwhile.",
        ),
        click.option(
            "--storage",
            metavar="URI",
            help="Storage to exchange results through if nodes share no file system: s3://…, gs://…, file://….",
        ),
        click.option(
            "--gpus-per-branch",
            type=click.FloatRange(min=0),
            callback=_one_gpu_at_most,
            help="At most 1; 0.5 puts two branches on one GPU. Default: 1 if there are GPUs.",
        ),
        click.option(
            "--memory-per-branch",
            type=click.FloatRange(min=0, min_open=True),
            help="GiB. Default: a share of the node, or more if measured.",
        ),
        click.option(
            "--cpus-per-branch",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            help="Threads for computing and for loading batches.",
        ),
        tracking_option,
    ):
        command = option(command)
    return command
