"""Where a fusion's score tables come from: a folder with an index, a run's folder, or an MLflow store.

Every source gives a tree and a file for each of its tables; a table is read when it is asked for and not kept, so that
a thousand of them need no more memory than one.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from branches.spec import PROJECTION
from fusion.hierarchy import Tree
from orchestrator.plan import Branch, make_plan, table_names
from orchestrator.preflight import with_resolved_files
from orchestrator.system import SystemSpec
from scoring.calibration import recalibrate, transductive_normalisation
from scoring.elsewhere import read_scores, table_path, tables_in
from scoring.errors import InputError
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
        table, stale = _calibrated(table, name)
        if stale and name not in self._warned:
            log.warning("%s: `calibrated` does not follow from `score` on %s: recalibrated", name, ", ".join(stale))
            self._warned.add(name)  # a table is read several times
        return table

    @cached_property
    def _tests(self) -> bool:
        """Whether test rows alone are fused, since a table (another team's) has no others."""
        return not all(pc.any(pc.equal(read_scores(p)["split"], "train")).as_py() for p in self.paths.values())

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)


def _calibrated(table: pa.Table, name: str) -> tuple[pa.Table, list[str]]:
    """The table with calibrated scores, and the machines whose own ones do not follow from their scores.

    Raises
    ------
    InputError
        If it has no training rows to calibrate on, its own scores or those it is fused into.
    """
    if is_transductive(table):
        return table, []
    try:
        calibrated, stale = recalibrate(table)
    except InputError as error:
        raise InputError(f"{name}: {error}; {REMEDY}") from None
    return with_scores(table, table["score"].to_numpy(), calibrated, metadata_of(table)), stale


def from_index(folder: Path) -> tuple[Tree, dict[str, Path]]:
    """Tree and files of a folder whose `index.csv` has the columns table, family, config and, maybe empty, seed.

    A table is a Parquet or CSV file or a folder of the challenge's CSV files (`scoring.elsewhere.read_scores`), named
    without its suffix. Without an index each is a configuration of one sub-system.

    Raises
    ------
    InputError
        If there is neither an index nor a table, or the index lacks a column or names a table twice or one that is not
        there.
    """
    path = folder / INDEX
    if not path.exists() and (tables := tables_in(folder)):
        log.info("%s: not there; each of the %d tables is a configuration of one sub-system", path, len(tables))
        return {"tables": {name: [name] for name in tables}}, tables
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows, header = list(reader), reader.fieldnames or []
    except FileNotFoundError:
        raise InputError(f"{path}: not there; write it (columns {', '.join(COLUMNS)}), or name a SYSTEM") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV ({error})") from None
    if missing := [column for column in COLUMNS[:3] if column not in header]:
        raise InputError(f"{path}: no column {', '.join(missing)} in its first line, which is {','.join(header)!r}")
    tree: dict[str, dict[str, list[str]]] = {}
    files: dict[str, Path] = {}
    seeds: set[tuple[str, str, str]] = set()
    for number, row in enumerate(rows, start=2):
        name, family, config = (_cell(path, number, row, column) for column in COLUMNS[:3])
        seed = (row.get("seed") or "").strip()
        if name in files:
            raise InputError(f"{path}: line {number} names {name} a second time")
        if seed and (family, config, seed) in seeds:
            raise InputError(f"{path}: line {number} has seed {seed} of {family}/{config} a second time")
        seeds.add((family, config, seed))
        files[name] = table_path(folder, name)
        if not files[name].exists():
            raise InputError(f"{path}: line {number} names {name}, and there is no {files[name]} (or .csv, or folder)")
        tree.setdefault(family, {}).setdefault(config, []).append(name)
    if not tree:
        raise InputError(f"{path}: the index names no table")
    return tree, files


def _cell(path: Path, number: int, row: Mapping[str, str | None], column: str) -> str:
    value = (row.get(column) or "").strip()
    if not value:
        raise InputError(f"{path}: line {number} has no {column}; the columns are {', '.join(COLUMNS)}")
    return value


def of_system(system: SystemSpec, paths: Iterable[Path]) -> tuple[Tree, dict[str, Path]]:
    """Tree of a system, and its tables among these files, known by configuration, seed, embedding and detector.

    Raises
    ------
    InputError
        Naming the configuration and seed that has no table, or two.
    """
    plan = make_plan([with_resolved_files(system)], None)
    files_by_identity: dict[str, list[Path]] = {}
    for path in paths:
        files_by_identity.setdefault(_identity_of_file(path), []).append(path)
    files = {}
    for branch in plan.branches:
        for name, identity in _identities(branch).items():
            candidates = files_by_identity.get(identity, [])
            if len(candidates) != 1:
                raise InputError(
                    f"{system.name}: {branch.name} has {_told(candidates)}; fuse the tables of one finished run"
                )
            files[name] = candidates[0]
    return plan.trees[system.name], files


def _told(paths: list[Path]) -> str:
    return "no score table there" if not paths else f"{len(paths)} score tables, {paths[0]} and {paths[1]}"


def _identities(branch: Branch) -> dict[str, str]:
    """What tells each of a branch's tables from others on any data set, by the table's name in the plan."""
    identities = (
        _identity(branch.config_id, branch.spec.seed, s.detector.model_dump_json(), s.embedding.model_dump_json())
        for s in branch.scorings
    )
    return dict(zip(table_names(branch), identities, strict=True))


def _identity(config_id: str, seed: int, detector: str, embedding: str) -> str:
    return json.dumps([config_id, seed, json.loads(detector), json.loads(embedding)], sort_keys=True)


def _identity_of_file(path: Path) -> str:
    """The same of a table's file; the path itself for a table that was made elsewhere."""
    try:
        metadata = {k.decode(): v.decode() for k, v in (pq.read_schema(path).metadata or {}).items()}
        embedding = metadata.get("embedding", PROJECTION.model_dump_json())
        return _identity(metadata["config_id"], json.loads(metadata["spec"])["seed"], metadata["detector"], embedding)
    except (KeyError, ValueError, OSError):
        return str(path)


def from_store(
    uri: str, experiment: str, run_id: str | None, system: SystemSpec | None, folder: Path
) -> tuple[Tree, dict[str, Path]]:
    """Tree and tables of the finished branches in an MLflow experiment; the tables are copied into `folder`.

    Parameters
    ----------
    run_id: of a `tutti run`, to take its branches only
    system: to take its tables only; without it the tree is read from the branches' names

    Raises
    ------
    InputError
        If the store does not answer, or has no such experiment, branch or intact table.
    """
    from orchestrator.tracking.tracker import find_tracker, reaching

    tracker = find_tracker(uri, folder, experiment)
    if tracker is None:
        raise InputError(f"{uri} has no experiment {experiment!r}; `--experiment` takes a name that its UI shows")
    query = "attributes.status = 'FINISHED' and tags.role = 'branch'"
    with reaching(uri):
        runs = tracker.client.search_runs([tracker.experiment_id], query, max_results=50_000)
        if run_id is not None:
            run_ids = tracker.below(run_id)
            runs = [run for run in runs if run.info.run_id in run_ids]
    if not runs:
        raise InputError(
            f"experiment {experiment!r} has no finished branch" + (f" under run {run_id}" if run_id else "")
        )
    tree: dict[str, dict[str, list[str]]] = {}
    files: dict[str, Path] = {}
    for run in runs:
        subsystem, _, configuration = run.info.run_name.rpartition("/")[0].partition("/")
        for path in tracker.tables(run, folder / run.info.run_id):
            name = f"{run.info.run_name}-{path.stem}"
            files[name] = path
            tree.setdefault(subsystem, {}).setdefault(f"{configuration}-{path.stem}", []).append(name)
    return (tree, files) if system is None else of_system(system, files.values())
