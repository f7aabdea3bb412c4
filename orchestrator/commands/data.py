"""Commands on data sets: data synth, data check."""

from __future__ import annotations

import json
from pathlib import Path

import click

from orchestrator.commands.display import print_table
from orchestrator.commands.options import json_option
from scoring.errors import InputError


@click.group()
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
        print_table(("machine", *kinds), [(name, *(m.get(k, 0) for k in kinds)) for name, m in machines.items()])
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        raise InputError(f"{folder}: {len(problems)} of {index.num_rows} clips cannot be used")
