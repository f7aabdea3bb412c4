"""Commands on data sets: data synth, data check."""

from __future__ import annotations

import json
from dataclasses import asdict
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
@click.option(
    "--size", type=click.Choice(["demo", "challenge"]), default="demo", show_default=True, help="How many clips."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the sounds.")
def synth(folder: Path, size: str, seed: int) -> None:
    """Write a generated data set in the layout of DCASE 2026.

    \b
    Example: tutti data synth /tmp/generated --seed 1
    """
    from branches.data.synthetic import DEFAULT, DEMO, write_dataset

    clips = write_dataset(folder, DEMO if size == "demo" else DEFAULT, seed)
    click.echo(f"{clips} clips in {folder}")


@data.command()
@click.argument("folder", type=click.Path(path_type=Path))
@json_option
def check(folder: Path, as_json: bool) -> None:
    """Read every clip of a data set; print what is in it, what looks odd and what is wrong.

    Exits with 2 if a clip cannot be used.

    \b
    Example: tutti data check /data/dcase2026
    """
    from branches.data.dataset import counts, read_index
    from branches.data.inspection import inspect

    index = read_index(folder)
    click.echo(f"reading {index.num_rows} clips", err=True)  # some thousand take minutes
    machines, inspection = counts(index), inspect(folder, index)
    if as_json:
        click.echo(json.dumps({"clips": index.num_rows, "machines": machines, **asdict(inspection)}))
    else:
        kinds = list(dict.fromkeys(kind for machine in machines.values() for kind in machine))
        print_table(("machine", *kinds), [(name, *(m.get(k, 0) for k in kinds)) for name, m in machines.items()])
    for line in [*(f"note: {note}" for note in inspection.notes), *inspection.problems]:
        click.echo(line, err=True)
    if inspection.problems:
        raise InputError(f"{folder}: {len(inspection.problems)} of {index.num_rows} clips cannot be used")
