"""Commands on data sets: data fetch, data synth, data import, data check."""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path

import click

from orchestrator.commands.options import json_option, path_type, print_table
from scoring.errors import InputError, counted


@click.group()
def data() -> None:
    """Fetch, generate, import and check data sets."""


@data.command()
@click.argument("name", type=click.Choice([f"dcase{year}" for year in range(2020, 2027)]))
@click.argument("folder", type=path_type)
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(["dev", "additional", "eval"]),
    help="Development set, additional training set or evaluation set; repeatable. Default: all three.",
)
@click.option("--machine", "machines", multiple=True, help="One machine alone; repeatable. Default: all.")
@click.option("--keep", is_flag=True, help="Keep the archives beside what they held.")
@click.pass_context
def fetch(
    context: click.Context, name: str, folder: Path, parts: tuple[str, ...], machines: tuple[str, ...], keep: bool
) -> None:
    """Fetch a challenge's data set from Zenodo into FOLDER, and check it.

    Archives are checked and unpacked one after another. After a cut or Ctrl-C the same command goes on; of what is
    there nothing is fetched again.

    \b
    Example: tutti data fetch dcase2026 /data/dcase2026
             tutti data fetch dcase2026 /data/fans --part dev --machine fan
    """
    from branches.data import fetching

    listed = fetching.archives(name, parts or fetching.PARTS, machines)
    missing = [archive for archive in listed if not fetching.is_unpacked(archive, folder)]
    size = sum(archive.size for archive in missing) / 1e9
    click.echo(f"{counted(len(listed), 'archive')}, {len(missing)} to fetch: {size:.3g} GB")
    fetching.check_room(missing, folder, keep)
    fetching.fetch(name, missing, folder, keep)
    context.invoke(check, folder=folder, as_json=False)


@data.command()
@click.argument("folder", type=path_type)
@click.option("--size", type=click.Choice(["demo", "challenge"]), default="demo", help="How many clips.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Random seed.")
def synth(folder: Path, size: str, seed: int) -> None:
    """Write a generated data set in the layout of DCASE 2026, to try commands on.

    \b
    Example: tutti data synth /tmp/generated --seed 1
    """
    from branches.data.synthetic import DEFAULT, DEMO, write_dataset

    clips = write_dataset(folder, DEMO if size == "demo" else DEFAULT, seed)
    click.echo(f"{counted(clips, 'clip')} in {folder}")


@data.command("import")
@click.argument("source", type=path_type)
@click.argument("folder", type=path_type)
@click.option("--machine", help="Machine of recordings for which folder or manifest name none.")
@click.option("--clip-seconds", type=click.FloatRange(min=0.2), help="Cut recordings into clips of this length.")
def import_(source: Path, folder: Path, machine: str | None, clip_seconds: float | None) -> None:
    """Make a data set in FOLDER of the recordings in SOURCE, a folder or a CSV manifest.

    For recordings of your own, of any name, rate, length and number of channels. Folders label the recordings in them
    with words such as train, test, normal, OK, anomaly, NG, defect, source and target; the outermost other folder is
    the machine. Everything else is normal training data. A manifest has the column path, and may have machine, section,
    split, condition, domain and attributes. FOLDER/recordings.csv maps clips to recordings.

    \b
    Example: tutti data import recordings /data/mine --machine press --clip-seconds 10
             tutti data import recordings.csv /data/mine
    """
    from branches.data.importing import import_recordings, originals

    sources = originals(source, machine)
    label = f"reading {counted(len(sources), 'recording')}"
    with click.progressbar(sources, label=label, file=sys.stderr) as recordings:
        clips, dropped = import_recordings(recordings, folder, clip_seconds)
    kinds: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for (*kind, origin), count in clips.items():
        kinds[tuple(kind)][origin] += count
    print_table(
        ("from", "machine", "split", "condition", "clips"),
        [(_some(sorted(origins)), *kind, origins.total()) for kind, origins in sorted(kinds.items())],
    )
    rest = f"; {dropped:.0f} s at the ends of recordings are left out" if dropped >= 0.5 else ""
    click.echo(f"{counted(clips.total(), 'clip')} of {counted(len(sources), 'recording')} in {folder}{rest}")


def _some(folders: list[str]) -> str:
    return ", ".join(folders[:3]) + f" and {len(folders) - 3} more" * (len(folders) > 3)


@data.command()
@click.argument("folder", type=path_type)
@json_option
def check(folder: Path, as_json: bool) -> None:
    """Read every clip of a data set; print contents, oddities and errors.

    Before the first run on it. Exits with 2 if a clip cannot be used.

    \b
    Example: tutti data check /data/dcase2026
    """
    from branches.data.dataset import counts, read_index
    from branches.data.inspection import PROPERTIES, inspect

    notes: list[str] = []
    index = read_index(folder, notes.append)
    label = f"reading {index.num_rows} clips"  # some thousand take minutes
    with click.progressbar(length=index.num_rows, label=label, file=sys.stderr) as progress:
        machines, inspection = counts(index), inspect(folder, index, progress.update)
    inspection.notes[:0] = notes
    if as_json:
        click.echo(json.dumps({"clips": index.num_rows, "machines": machines, **asdict(inspection)}))
    else:
        kinds = list(dict.fromkeys(kind for machine in machines.values() for kind in machine))
        header = ("machine", *kinds, *PROPERTIES)
        print_table(
            header,
            [(n, *(m.get(k, 0) for k in kinds), *inspection.formats.get(n, {}).values()) for n, m in machines.items()],
        )
    for line in [*(f"note: {note}" for note in inspection.notes), *inspection.problems]:
        click.echo(line, err=True)
    if inspection.problems:
        raise InputError(f"{folder}: {len(inspection.problems)} of {index.num_rows} clips cannot be used")
    number = counted(len(inspection.notes), "note")
    verdict = f"nothing that stops a run; {number}" if inspection.notes else "no clip looks wrong"
    click.echo(f"{folder}: {verdict}", err=True)
