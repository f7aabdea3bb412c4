"""Copies of a run's score tables: under readable names for others to fuse, and from an MLflow store."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

from orchestrator.fuse.sources import COLUMNS, INDEX, is_run, read_sources
from orchestrator.ledger.folders import BRANCHES, RESULT, SYSTEMS
from scoring.atomic import atomic_folder
from scoring.errors import InputError


def write_tables(run: Path, folder: Path) -> int:
    """Copy the score tables of a run's systems to a new `folder` under what they are called, with an index.

    Returns how many there are. Raises InputError if `run` is no run's folder, or `folder` exists.
    """
    if not is_run(run):
        raise InputError(f"{run}: no folder of a run; `tutti run` makes one")
    if folder.exists():
        raise InputError(f"{folder}: exists already; give another folder, or remove it")
    source = read_sources([run])
    with atomic_folder(folder) as new, open(new / INDEX, "w", newline="", encoding="utf-8") as file:
        index = csv.writer(file)
        index.writerow(COLUMNS)
        for family, configurations in source.tree.items():
            for config, tables in configurations.items():
                for table in tables:
                    (new / table).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source.files[table], new / f"{table}.parquet")
                    index.writerow([table, family, config, table.rpartition("/")[2]])
    return len(source.files)


def copied_run(uri: str, experiment: str, run_id: str | None, folder: Path) -> Path:
    """Make `folder` anew of the finished branches and systems of an MLflow experiment, as a run has them; the folder.

    run_id: of a `tutti run`, to take the branches of its systems only

    Raises InputError if the store does not answer, has no such experiment, branch or intact table, or the experiment
    has two runs of a system.
    """
    from orchestrator.tracking.tracker import find_tracker, reaching

    tracker = find_tracker(uri, folder, experiment)
    if tracker is None:
        raise InputError(f"{uri} has no experiment {experiment!r}; `--experiment` takes a name that its UI shows")
    query = "attributes.status = 'FINISHED' and tags.role = '{}'"
    with reaching(uri):
        below = None if run_id is None else tracker.below(run_id)
        branches, systems = (
            [
                run
                for run in tracker.client.search_runs([tracker.experiment_id], query.format(role), max_results=50_000)
                # The baseline is a branch of no system.
                if run.data.tags.get("system") and (below is None or run.info.run_id in below)
            ]
            for role in ("branch", "fusion")
        )
    if not branches:
        where = f" under run {run_id}" if run_id else ""
        raise InputError(f"experiment {experiment!r} has no finished branch{where}")
    with atomic_folder(folder) as new:
        for run in branches:
            if not (copies := new / BRANCHES / run.data.tags["branch_id"]).exists():  # of another run's folder
                tracker.tables(run, copies)
        for run in systems:
            if (copies := new / SYSTEMS / run.data.tags["system"]).exists():
                name = run.data.tags["system"]
                raise InputError(f"experiment {experiment!r} has two runs of {name}; choose one with --run ID")
            copies.mkdir(parents=True)
            with reaching(uri):
                tracker.client.download_artifacts(run.info.run_id, RESULT, str(copies))
    return folder
