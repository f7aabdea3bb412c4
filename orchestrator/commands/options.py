"""Options that several commands share, and the tables that they print."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

_SYSTEMS = Path(__file__).parent.parent / "systems"  # a shell that completes a word waits for no imports


class _PathType(click.Path):
    """A path that there may be: none that is too long, or whose links lead in a circle, which few calls take well."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        path = super().convert(value, parameter, context)
        try:
            os.stat(path)
        except OSError as error:
            if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
                raise
        return path


path_type = _PathType(path_type=Path)
existing_path = click.Path(path_type=Path, exists=True)  # said before torch is loaded


def complete_systems(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Built-in systems, and files where there is more to it than a name."""
    names = [path.stem for path in sorted(_SYSTEMS.glob("*.yaml")) if path.stem.startswith(begun)]
    return [*map(CompletionItem, names)] or [CompletionItem(begun, type="file")]


def _together(*options: Callable[..., Any]) -> Callable[..., Any]:
    """Several options as one decorator."""
    return lambda command: reduce(lambda inner, option: option(inner), reversed(options), command)


backbone_option = click.option(
    "--backbone",
    help="Checkpoint for every branch: a name (see `tutti backbones`), path or URI; or built in: `small`, `tiny`.",
)
set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a setting of every configuration, e.g. branch.training.steps=30; repeatable.",
)
system_options = _together(
    click.argument("systems", nargs=-1, required=True, metavar="SYSTEM...", shell_complete=complete_systems),
    click.option("--data", required=True, type=path_type, help="Data set in the challenge's layout."),
    backbone_option,
    set_option,
)
ground_truth_option = click.option(
    "--ground-truth",
    type=path_type,
    help="Folder with the organisers' ground_truth_*.csv: labels published later, only for reporting.",
)
run_folder_option = click.option(
    "--out",
    required=True,
    type=path_type,
    metavar="RUN_DIR",
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
    envvar="RAY_ADDRESS",  # which Ray itself sets inside a job
    show_envvar=True,
    help="`local` starts Ray here; `auto` uses the cluster that this machine or job belongs to; also host:port, ray://host:10001.",
)
run_options = _together(
    tracking_option,
    click.option(
        "--cpus-per-branch",
        type=click.IntRange(min=1),
        default=1,
        help="Threads for computing and for loading batches.",
    ),
    click.option(
        "--memory-per-branch",
        type=click.FloatRange(min=0, min_open=True),
        help="GiB. Default: an equal share of the node.",
    ),
    click.option(
        "--gpus-per-branch",
        type=click.FloatRange(0, 1),
        help="0.5 puts two branches on one GPU; more GPUs run more branches. Default: 1 if there are GPUs.",
    ),
    click.option(
        "--storage",
        metavar="URI",
        help="Storage to exchange results through if nodes share no file system: s3://…, gs://…, file://….",
    ),
    click.option(
        "--checkpoint-seconds",
        type=click.FloatRange(min=0),
        default=600.0,
        help="Interval between checkpoints of a branch.",
    ),
    click.option("--compile", "compiled", is_flag=True, help="Compile trained encoders: slower start, faster steps."),
    click.option(
        "--fuse-incomplete", is_flag=True, help="If branches fail, fuse the others; the exit code is still 1."
    ),
    json_option,
)


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Columns as wide as their widest cell: the first to the left, the others to the right."""
    lines = [header, *([*map(_cell, row)] for row in rows)]
    width, *widths = (max(map(len, column)) for column in zip(*lines, strict=True))
    for first, *others in lines:
        numbers = [text.rjust(space) for text, space in zip(others, widths, strict=True)]
        click.echo("  ".join([first.ljust(width), *numbers]).rstrip())


def print_result(result: Mapping[str, Any], name: str = "") -> None:
    """A fusion's headline, and the figures of the baseline, the methods and what is delivered, if there are any."""
    from orchestrator.fuse.result import rows_of_methods

    click.echo(f"{name}{': ' if name else ''}{result['headline']}")
    if result["omega"] is not None:
        column = "held-out" if result["machines"]["lomo"] else ", ".join(result["machines"]["in_sample"])
        print_table(("Omega, %", column), [(name, omega) for name, _, omega in rows_of_methods(result)])


def _cell(value: Any) -> str:
    """Two decimals, and a dash for what is missing."""
    if value is None:
        return "–"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
