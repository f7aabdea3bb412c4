"""Where score tables come from: the folder of a run, a folder with an index, single tables, or an MLflow store.

A source has a tree of names and a file for each of them. A run contributes the configurations of its systems, whose
tables are called `sub-system/configuration/seed`; a folder its index or, without one, a sub-system `tables`, as single
tables do together. Of a store a run's folder is copied, as far as it is needed.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq

from branches.spec import PROJECTION
from fusion.hierarchy import Tree
from orchestrator.fuse.result import read_result, result_folders
from orchestrator.ledger.folders import BRANCHES, FUSED, HELD_OUT, RECORD, RESULT, read_record, table_file
from orchestrator.plan import make_plan
from orchestrator.preflight import with_resolved_files
from orchestrator.system import SystemSpec, load_system
from scoring.elsewhere import is_table, table_name, table_path, table_sha256, tables_in
from scoring.errors import InputError, counted
from scoring.spreadsheets import read_rows
from scoring.table import metadata_of

log = logging.getLogger(__name__)

INDEX = "index.csv"
COLUMNS = ("table", "family", "config", "seed")
LOOSE = "tables"  # the sub-system of tables without an index


@dataclass(frozen=True)
class Source:
    """Score tables: the tree of their names, and the file of each.

    name: of what was given, for people
    system: that these tables are of by a run's result; empty for others
    """

    name: str
    tree: Tree
    files: Mapping[str, Path]
    system: str = ""


def read_sources(paths: Sequence[Path], system: str | None = None, backbone: str | None = None) -> Source:
    """The tables at all paths, or those of a system among them.

    Parameters
    ----------
    system: name or YAML file. The runs' own records say which tables are those of a system of that name, whatever
        settings it was trained with; others are known by the settings of the file, whatever the data
    backbone: in place of that of the file

    What two sources call the same has the name of its source in front: `a-frozen` for a sub-system, `a/g0` for a table.

    Raises InputError if nothing is there, two sources or two single tables have the same name, or the system lacks a
    table or has two that differ.
    """
    if absent := [path for path in paths if not path.exists()]:
        raise InputError(f"{absent[0]}: no such folder or score table")
    loose = [path for path in paths if is_table(path)]
    found = [source for path in paths if path not in loose for source in _sources(path, alone=len(paths) == 1)]
    if loose:
        found.append(_loose(loose))
    source = _of_system(paths, found, system, backbone) if system else _side_by_side(paths, found)
    if lost := [(file, name) for name, file in source.files.items() if not file.exists()]:
        raise InputError(f"{lost[0][0]}: not there, the score table of {lost[0][1]}; `tutti run` makes it again")
    return source


def _sources(path: Path, alone: bool) -> list[Source]:
    if not path.is_dir():
        raise InputError(f"{path}: neither a folder nor a .parquet or .csv file")
    if not is_run(path):
        return [from_index(path)]
    found, run = of_run(path), path.resolve().name
    if alone:
        return found
    return [replace(source, name=run if len(found) == 1 else f"{run}-{source.name}") for source in found]


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run."""
    return (path / BRANCHES).is_dir()


def of_run(run: Path) -> list[Source]:
    """The systems of a run by its results; of a run without any, what is finished of all its systems; maybe none.

    Raises InputError if a result is damaged, or there is none and two finished tables have the same name.
    """
    found = []
    for folder in result_folders(run):
        result = read_result(folder)
        files = {branch["branch"]: table_file(run, branch["table"]) for branch in result["branches"]}
        if len(files) == len(result["branches"]) > 0:
            found.append(Source(result["system"], tree_of(files), files, result["system"]))
        else:
            log.warning("%s: of an older tutti; repeat the `tutti run` that made it", folder / RESULT)
    if not found:
        records = [(path.parent.name, read_record(path.parent)) for path in sorted(run.glob(f"{BRANCHES}/*/{RECORD}"))]
        tables = [
            (record.names.get(table, [record.name])[0], table_file(run, f"{branch_id}/{table}"))
            for branch_id, record in records
            if record and record.tags.get("system")  # the baseline is a branch of none
            for table in record.tables
        ]
        files = dict(tables)
        if len(files) < len(tables):
            twice = next(name for name, count in Counter(name for name, _ in tables).items() if count > 1)
            raise InputError(f"{run}: two score tables are called {twice}; repeat the `tutti run` that made them")
        found = [Source(run.resolve().name, tree_of(files), files)] if files else []
    return found


def tree_of(names: Iterable[str]) -> Tree:
    """The tree of tables that are called `sub-system/configuration/seed`."""
    tree: dict[str, dict[str, list[str]]] = {}
    for name in names:
        subsystem, configuration, _ = name.split("/")
        tree.setdefault(subsystem, {}).setdefault(configuration, []).append(name)
    return tree


def from_index(folder: Path) -> Source:
    """The tables of a folder whose `index.csv` has the columns table, family, config and, maybe empty, seed.

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
        log.info("%s: not there; of %s each is a configuration of one sub-system", path, counted(len(tables), "table"))
        return Source(folder.resolve().name, {LOOSE: {name: [name] for name in tables}}, tables)
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
    return Source(folder.resolve().name, tree, files)


def _loose(paths: Sequence[Path]) -> Source:
    """Single tables; one that is called like another has the name of its folder in front."""
    counts = Counter(map(table_name, paths))
    files: dict[str, Path] = {}
    for path in paths:
        name = table_name(path)
        name = f"{path.resolve().parent.name}-{name}" if counts[name] > 1 else name
        if name in files:
            raise InputError(f"{path} and {files[name]} have the same name; rename one")
        files[name] = path
    return Source(LOOSE, {LOOSE: {name: [name] for name in files}}, files)


def _side_by_side(paths: Sequence[Path], sources: Sequence[Source]) -> Source:
    if not sources:
        raise InputError(f"{paths[0]}: no finished branch in it; `tutti run` makes them")
    if len(sources) == 1:
        return sources[0]
    if twice := [name for name, count in Counter(source.name for source in sources).items() if count > 1]:
        raise InputError(f"two sources are called {twice[0]}; rename one, or name a SYSTEM that takes tables of both")
    subsystems = Counter(subsystem for source in sources for subsystem in source.tree)
    names = Counter(name for source in sources for name in source.files)
    tree: dict[str, Mapping[str, Sequence[str]]] = {}
    files: dict[str, Path] = {}
    for source in sources:
        called = {name: f"{source.name}/{name}" if names[name] > 1 else name for name in source.files}
        files |= {called[name]: file for name, file in source.files.items()}
        for subsystem, configurations in source.tree.items():
            own = f"{source.name}-{subsystem}" if subsystems[subsystem] > 1 else subsystem
            tree[own] = {name: [called[table] for table in tables] for name, tables in configurations.items()}
    return Source("", tree, files)


def _of_system(paths: Sequence[Path], sources: Sequence[Source], system: str, backbone: str | None) -> Source:
    recorded: dict[str, list[Path]] = {}
    spec = None if any(source.system == system for source in sources) else load_system(system, backbone)
    name = spec.name if spec else system
    for source in sources:
        if source.system == name:
            for table, file in source.files.items():
                recorded.setdefault(table, []).append(file)
    names = list(recorded) if spec is None else _seeds(spec, recorded)
    if recorded:
        log.info("%s: %s with the settings of the run", name, counted(len(recorded.keys() & {*names}), "score table"))
    if spec is not None and not recorded.keys() >= {*names}:
        recorded = _by_settings(paths, spec) | recorded
    files = {}
    for table in names:
        by_content = {table_sha256(file): file for file in recorded.get(table, [])}
        if len(by_content) != 1:
            told = f"{len(by_content)} score tables, {' and '.join(map(str, by_content.values()))}"
            told = told if by_content else "no score table there"
            raise InputError(f"{name}: {table} has {told}; fuse the tables of one finished run")
        (files[table],) = by_content.values()
    return Source(name, tree_of(names), files, name)


def _seeds(spec: SystemSpec, recorded: Iterable[str]) -> list[str]:
    """A system's tables: of a configuration that runs have trained their seeds, else its own."""
    seeds: dict[str, list[str]] = {name.rpartition("/")[0]: [] for name in spec.tables}
    for name in recorded:
        seeds.get(name.rpartition("/")[0], []).append(name)
    own = {configuration: [n for n in spec.tables if n.rpartition("/")[0] == configuration] for configuration in seeds}
    return [name for configuration, names in seeds.items() for name in names or own[configuration]]


def _by_settings(paths: Sequence[Path], system: SystemSpec) -> dict[str, list[Path]]:
    """The tables anywhere below these paths that have a system's settings by what it calls them, whatever the data."""
    found: dict[tuple[str, ...], list[Path]] = {}
    for path in paths:
        root = path / BRANCHES if is_run(path) else path  # a run has copies elsewhere, for MLflow
        for file in sorted(root.rglob("*.parquet")) if root.is_dir() else [root]:
            with suppress(KeyError, ValueError, OSError):  # made elsewhere
                found.setdefault(_identity(metadata_of(pq.read_schema(file).empty_table())), []).append(file)
    try:
        plan = make_plan([with_resolved_files(system)], None)
    except InputError as error:
        raise InputError(
            f"{paths[0]}: no results of {system.name}, and to know its tables by its file: {error}"
        ) from None
    named: dict[str, list[Path]] = {}
    for branch in plan.branches:
        for use in branch.uses:
            specs = {"spec": branch.spec, "embedding": use.scoring.embedding, "detector": use.scoring.detector}
            metadata = {key: spec.model_dump_json() for key, spec in specs.items()}
            named[use.name] = found.get(_identity({"config_id": branch.config_id, **metadata}), [])
    return named


def _identity(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """What tells a table from others of any data set."""
    seed, embedding = json.loads(metadata["spec"])["seed"], metadata.get("embedding", PROJECTION.model_dump_json())
    return (metadata["config_id"], str(seed), metadata["detector"], embedding)
