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
    help="A setting of every configuration, such as branch.training.steps=30; may be given several times.",
)
ground_truth_option = click.option(
    "--ground-truth",
    type=click.Path(path_type=Path),
    help="Folder with the organisers' ground_truth_*.csv: labels that came later, for figures alone.",
)
run_folder_option = click.option(
    "--out",
    required=True,
    metavar="RUN_DIR",
    type=click.Path(path_type=Path),
    help="Run folder: everything the run makes; the same again continues.",
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
    help="`local` starts Ray here; `auto` is the cluster that this machine or job is part of; host:port, ray://host:10001.",
)


def _one_gpu_at_most(context: click.Context, parameter: click.Parameter, gpus: float | None) -> float | None:
    if gpus is not None and gpus > 1:
        raise click.BadParameter(
            "a branch fits one GPU and computes on no second; give 1 or less, and more branches at once use more GPUs"
        )
    return gpus


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options of every command that trains, but `--address`."""
    for option in (
        json_option,
        click.option(
            "--fuse-incomplete", is_flag=True, help="Where branches fail, fuse the others; exit code 1 all the same."
        ),
        click.option(
            "--compile",
            "compiled",
            is_flag=True,
            help="Compile the encoders that are trained: a slower start of each, faster steps.",
        ),
        click.option(
            "--stop-hopeless", is_flag=True, help="Give up branches whose loss does not fall, and fuse without them."
        ),
        click.option(
            "--checkpoint-seconds",
            type=click.FloatRange(min=0),
            default=600.0,
            show_default=True,
            help="How often a branch under way is saved, while it goes on.",
        ),
        click.option(
            "--storage",
            metavar="URI",
            help="Where nodes that share no file system share what they make: s3://…, gs://…, file://….",
        ),
        click.option(
            "--gpus-per-branch",
            type=click.FloatRange(min=0),
            callback=_one_gpu_at_most,
            help="At most 1; 0.5 puts two branches on one. Default: 1 where there are GPUs.",
        ),
        click.option(
            "--memory-per-branch",
            type=click.FloatRange(min=0, min_open=True),
            help="GiB. Default: a share of the node, or more if measured so.",
        ),
        click.option(
            "--cpus-per-branch",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            help="Threads that compute and put batches together.",
        ),
        tracking_option,
    ):
        command = option(command)
    return command
