"""Where a fusion's score tables come from: a folder with an index, a run's folder, or an MLflow store.

Of a store the tables are copied into a folder with an index. Every folder gives a tree and a file for each of its
tables; a table is read when it is asked for and not kept, so that a thousand of them need no more memory than one.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from branches.spec import PROJECTION
from fusion.hierarchy import Tree
from orchestrator.ledger.folders import BRANCHES, FUSED, HELD_OUT, RESULT
from orchestrator.plan import make_plan, table_names
from orchestrator.preflight import with_resolved_files
from orchestrator.system import SystemSpec
from scoring.atomic import atomic_folder
from scoring.calibration import recalibrate, transductive_normalisation
from scoring.elsewhere import read_scores, table_path, tables_in
from scoring.errors import InputError
from scoring.spreadsheets import read_rows
from scoring.table import is_transductive, metadata_of, with_scores

log = logging.getLogger(__name__)

INDEX = "index.csv"
COLUMNS = ("table", "family", "config", "seed")
REMEDY = (
    "score the training clips too, or give --transductive-normalisation, which normalises by the test clips and "
    "is against the challenge's rules"
)


@dataclass(frozen=True)
class TableFiles(Mapping[str, pa.Table]):
    """Score tables by name, read from their files each time, on a common scale.

    transductive: normalise every table by its own test clips, see `scoring.calibration.transductive_normalisation`
    """

    paths: Mapping[str, Path]
    transductive: bool = False
    _warned: set[str] = field(default_factory=set, compare=False)

    def __getitem__(self, name: str) -> pa.Table:
        table = read_scores(self.paths[name])
        if self.transductive:
            return transductive_normalisation(table.filter(pc.equal(table["split"], "test")) if self._tests else table)
        if is_transductive(table):
            return table
        try:
            calibrated, stale = recalibrate(table)
        except InputError as error:
            raise InputError(f"{name}: {error}; {REMEDY}") from None
        if stale and name not in self._warned:
            log.warning("%s: `calibrated` does not follow from `score` on %s: recalibrated", name, ", ".join(stale))
            self._warned.add(name)  # a table is read several times
        return with_scores(table, table["score"].to_numpy(), calibrated, metadata_of(table))

    @cached_property
    def _tests(self) -> bool:
        """Whether test rows alone are fused, since a table (another team's) has no others."""
        return not all(pc.any(pc.equal(read_scores(p)["split"], "train")).as_py() for p in self.paths.values())

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __contains__(self, name: object) -> bool:
        return name in self.paths  # a mapping's own would read the table


def from_index(folder: Path) -> tuple[Tree, dict[str, Path]]:
    """Tree and files of a folder whose `index.csv` has the columns table, family, config and, maybe empty, seed.

    A table is a Parquet or CSV file or a folder of the challenge's CSV files (`scoring.elsewhere.read_scores`), named
    without its suffix. Without an index each is a configuration of one sub-system, but for what a fusion into this
    folder wrote.

    Raises InputError if there is neither an index nor a table, or the index lacks a column or names a table twice or
    one that is not there.
    """
    path = folder / INDEX
    if not path.exists():
        written = {FUSED, HELD_OUT} if (folder / RESULT).exists() else set()
        tables = {name: file for name, file in tables_in(folder).items() if file.name not in written}
        if not tables:
            raise InputError(f"{path}: not there; write it (columns {', '.join(COLUMNS)}), or name a SYSTEM")
        log.info("%s: not there; each of the %d tables is a configuration of one sub-system", path, len(tables))
        return {"tables": {name: [name] for name in tables}}, tables
    tree: dict[str, dict[str, list[str]]] = {}
    files: dict[str, Path] = {}
    seeds: set[tuple[str, str, str]] = set()
    for line, row in read_rows(path, COLUMNS[:3]):
        name, family, config, seed = values = [row.get(column, "") for column in COLUMNS]
        file = table_path(folder, name)
        if not all(values[:3]):
            problem = f"has no {COLUMNS[values.index('')]}; the columns are {', '.join(COLUMNS)}"
        elif name in files:
            problem = f"names {name} a second time"
        elif seed and (family, config, seed) in seeds:
            problem = f"has seed {seed} of {family}/{config} a second time"
        elif not file.exists():
            problem = f"names {name}, and there is no {file} (or .csv, or folder)"
        else:
            files[name] = file
            seeds.add((family, config, seed))
            tree.setdefault(family, {}).setdefault(config, []).append(name)
            continue
        raise InputError(f"{path}: line {line} {problem}")
    if not tree:
        raise InputError(f"{path}: the index names no table")
    return tree, files


def read_folder(folder: Path, system: SystemSpec | None) -> tuple[Tree, dict[str, Path]]:
    """Tree and files of the tables in a folder: by its index, or those of a system.

    A system's are known by configuration, seed, embedding and detector, whatever the data.

    Raises InputError if there is no such folder, as `from_index`, or naming the configuration and seed that has no
    table, or two.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    if system is None:
        return from_index(folder)
    ledger = folder / BRANCHES  # of a run, which has copies of its tables elsewhere, for MLflow
    found: dict[tuple[str, ...], list[Path]] = {}
    for path in sorted((ledger if ledger.is_dir() else folder).rglob("*.parquet")):
        with suppress(KeyError, ValueError, OSError):  # made elsewhere
            found.setdefault(_identity(metadata_of(pq.read_schema(path).empty_table())), []).append(path)
    plan = make_plan([with_resolved_files(system)], None)
    files = {}
    for branch in plan.branches:
        for name, scoring in zip(table_names(branch), branch.scorings, strict=True):
            specs = {"spec": branch.spec, "embedding": scoring.embedding, "detector": scoring.detector}
            metadata = {key: spec.model_dump_json() for key, spec in specs.items()}
            paths = found.get(_identity({"config_id": branch.config_id, **metadata}), [])
            if len(paths) != 1:
                told = f"{len(paths)} score tables, {paths[0]} and {paths[1]}" if paths else "no score table there"
                raise InputError(f"{system.name}: {branch.name} has {told}; fuse the tables of one finished run")
            files[name] = paths[0]
    return plan.trees[system.name], files


def _identity(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """What tells a table from others of any data set."""
    seed, embedding = json.loads(metadata["spec"])["seed"], metadata.get("embedding", PROJECTION.model_dump_json())
    return (metadata["config_id"], str(seed), metadata["detector"], embedding)


def copied_tables(uri: str, experiment: str, run_id: str | None, folder: Path) -> Path:
    """Make `folder` anew of the score tables of an MLflow experiment's finished branches, with an index; the folder.

    run_id: of a `tutti run`, to take the branches of its systems only

    Raises InputError if the store does not answer, or has no such experiment, branch or intact table.
    """
    from orchestrator.tracking.tracker import find_tracker, reaching

    tracker = find_tracker(uri, folder, experiment)
    if tracker is None:
        raise InputError(f"{uri} has no experiment {experiment!r}; `--experiment` takes a name that its UI shows")
    query = "attributes.status = 'FINISHED' and tags.role = 'branch'"
    with reaching(uri):
        runs = tracker.client.search_runs([tracker.experiment_id], query, max_results=50_000)
        below = None if run_id is None else tracker.below(run_id)
    # The baseline is a branch of no system.
    runs = [r for r in runs if r.data.tags.get("system") and (below is None or r.info.run_id in below)]
    if not runs:
        where = f" under run {run_id}" if run_id else ""
        raise InputError(f"experiment {experiment!r} has no finished branch{where}")
    with atomic_folder(folder) as new, open(new / INDEX, "w", newline="", encoding="utf-8") as file:
        index = csv.writer(file)
        index.writerow(COLUMNS)
        for run in runs:
            name = run.info.run_name
            copies = new / name.replace("/", "-")
            if copies.exists():  # with other settings, or in another run folder; a system tells them apart
                copies = new / run.info.run_id
            family, _, config = name.rpartition("/")[0].partition("/")
            for path in tracker.tables(run, copies):
                table = path.relative_to(new).with_suffix("").as_posix()
                index.writerow([table, family, f"{config}-{path.stem}", name.rpartition("/")[2]])
    return folder
