"""The check of a package, one of `tutti submission make` or any other team's."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from branches.data.dataset import index_of
from branches.data.layout import clip_paths
from orchestrator.submission.files import (
    CSV_NAME,
    DECISION,
    KINDS,
    MAX_SYSTEMS,
    SCORE,
    SYSTEM_LABEL,
    challenge_machines,
    csv_name,
)
from orchestrator.submission.schema import Meta, read_yaml, unfilled
from orchestrator.system import validated
from scoring.errors import InputError
from scoring.metrics import CELLS, MachineMetrics, official_metrics

ROUNDING = 0.06  # per cent; one digit after the point is enough
UNFILLED = "still to be filled in"  # in the lines on these fields

Files = dict[Path, bytes]
Group = tuple[str, int]  # machine and section
Table = dict[str, float]  # clip → score or decision
Tables = dict[str, dict[Group, Table]]  # kind → machine and section → table


@dataclass
class Findings:
    """What a check has found, every fault as one line that begins with its file or folder.

    Errors keep a package from being submitted; warnings are for a person to look at.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def error(self, location: object, text: str) -> None:
        self.errors.append(" ".join(f"{location}: {text}".split()))

    def warning(self, location: object, text: str) -> None:
        self.warnings.append(" ".join(f"{location}: {text}".split()))


def check_package(path: Path, data: Path | None = None) -> Findings:
    """Everything that is wrong with a package, a folder or a zip file.

    data: data set whose test clips the package must have, with hidden labels or known ones; without it the tables are
        held against each other only

    Raises InputError if there is no package at `path`, or no data set at `data`.
    """
    findings = Findings()
    index = None if data is None else _test_clips(data)
    files = _read(path)
    systems = _systems(files, findings)
    _check_systems(path, systems, findings)
    expected = _clips(systems.values(), index)
    machines = {machine for machine, _ in expected} if index is None else challenge_machines(index)
    required = {group for group in expected if group[0] in machines}
    to_fill_in: dict[tuple[str, ...], list[str]] = defaultdict(list)  # most of it comes from one form for all systems
    for folder, tables in systems.items():
        _check_clips(folder, tables, expected, required, data or "other tables", findings)
        _check_decisions(folder, tables, findings)
        meta = folder / f"{folder.name}.meta.yaml"
        keys = _check_meta(meta, files, {} if index is None else _measured(tables[SCORE], index), findings)
        to_fill_in[keys].append(str(meta))
    for keys, metas in to_fill_in.items():
        if keys:
            findings.error(_some(metas), f"{UNFILLED}: {', '.join(keys)}")
    if not any(file.suffix.lower() == ".pdf" for file in files):
        findings.warning(path.name, "no technical report (PDF) in it")
    return findings


def _test_clips(data: Path) -> pa.Table:
    """The clip index of a data set's test clips; an evaluation set may come without training clips."""
    index = index_of(clip_paths(data))
    return index.filter(pc.equal(index["split"], "test"))


def _read(package: Path) -> Files:
    """Files by their path in the package, the content of tables and meta files alone; nothing is unpacked."""
    if not package.exists():
        raise InputError(f"{package}: no such package; give a folder or a zip file")
    folder = package.resolve()
    root = folder.parent if SYSTEM_LABEL.fullmatch(folder.name) else folder  # it may be that of one system
    read = (".csv", ".yaml")
    try:
        if folder.is_dir():
            found = (path for path in sorted(folder.rglob("*")) if path.is_file())
            files = {path.relative_to(root): path.read_bytes() if path.suffix in read else b"" for path in found}
        else:
            with zipfile.ZipFile(package) as archive:
                names = (name for name in sorted(archive.namelist()) if not name.endswith("/"))
                files = {Path(name): archive.read(name) if name.endswith(read) else b"" for name in names}
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, ValueError, EOFError) as error:
        raise InputError(f"{package}: cannot be read as a folder or zip file ({error}); make it again") from None
    hidden = (".", "__MACOSX")  # the operating system's
    return {path: files[path] for path in files if not any(part.startswith(hidden) for part in path.parts)}


def _systems(files: Files, findings: Findings) -> dict[Path, Tables]:
    """Tables of each folder that has tables or a meta file."""
    systems: dict[Path, Tables] = defaultdict(lambda: {kind: {} for kind in KINDS})
    for path, content in files.items():
        if match := CSV_NAME.fullmatch(path.name):
            table = _table(path, content, match["kind"] == DECISION, findings)
            systems[path.parent][match["kind"]][match["machine"], int(match["section"])] = table
        elif path.suffix == ".csv":
            forms = " or ".join(csv_name(kind, "<machine>", 0) for kind in KINDS)
            findings.error(path, f"not a table's name; must be {forms}")
        elif path.name == f"{path.parent.name}.meta.yaml":
            systems[path.parent]  # an entry, also for a system without tables
        elif path.suffix.lower() != ".pdf":
            findings.warning(path, "not a file of a package")
    return systems


def _table(path: Path, content: bytes, decisions: bool, findings: Findings) -> Table:
    """The value of each clip; rows that are not in order are findings, those of one cause in one line."""
    lines = content.decode(errors="replace").rstrip().splitlines()
    table: Table = {}
    rows: dict[str, list[int]] = defaultdict(list)
    for row, line in enumerate(lines, 1):
        clip, _, text = line.replace('"', "").partition(",")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not clip.endswith(".wav") or "/" in clip:
            rows["must begin with a clip's bare name in UTF-8, such as section_00_0000.wav; no header"].append(row)
        elif clip in table:
            rows["the clip stands in an earlier row too"].append(row)
        elif not math.isfinite(value):
            rows["must be `clip,value` with a finite number"].append(row)
        elif decisions and value not in (0, 1):
            rows["the decision is neither 0 nor 1"].append(row)
        else:
            table[clip] = value
    for cause, found in rows.items():
        findings.error(path, f"row {_some(found)}: {cause}: {lines[found[0] - 1][:80]!r}")
    if not table:
        findings.error(path, "no usable rows; there must be one `clip,value` for each test clip")
    return table


def _some(names: Sequence[object]) -> str:
    """The first names of many: `a, b, c and 5 more`."""
    return ", ".join(map(str, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _check_systems(package: Path, systems: Mapping[Path, Tables], findings: Findings) -> None:
    """At most four systems, of one team, and different ones."""
    if not systems:
        findings.error(package.name, f"no system in it: no folder with {csv_name(SCORE, '<machine>', 0)}")
    if len(systems) > MAX_SYSTEMS:
        names = ", ".join(folder.name for folder in systems)
        findings.error(package.name, f"{len(systems)} systems, at most {MAX_SYSTEMS} are allowed: {names}")
    for folder in systems:
        if not SYSTEM_LABEL.fullmatch(folder.name):
            findings.error(folder, f"the folder is no label such as Jiang_THU_task2_1, numbered 1 to {MAX_SYSTEMS}")
    for one, other in combinations(systems, 2):
        if one.name == other.name:
            findings.error(other, f"the same label as {one}; number the systems")
        elif one.name[:-1] != other.name[:-1]:
            findings.error(other, f"another team's label than {one.name}")
        if systems[one][SCORE] == systems[other][SCORE]:
            findings.warning(other, f"the same scores as {one.name}")


def _clips(systems: Iterable[Tables], index: pa.Table | None) -> dict[Group, set[str]]:
    """The clips of each machine and section: those of the data set or, without one, those that any table has."""
    if index is not None:
        rows = index.group_by(["machine", "section"]).aggregate([("clip", "list")]).to_pylist()
        return {(row["machine"], row["section"]): set(row["clip_list"]) for row in rows}
    clips: dict[Group, set[str]] = defaultdict(set)
    for group, table in (item for system in systems for tables in system.values() for item in tables.items()):
        clips[group] |= table.keys()
    return clips


def _check_clips(
    folder: Path,
    tables: Tables,
    expected: Mapping[Group, set[str]],
    required: set[Group],
    source: object,
    findings: Findings,
) -> None:
    """Both tables of each required machine and section, and of those that have one; with the clips of `source`."""
    for kind, group in product(KINDS, sorted({*required, *tables[SCORE], *tables[DECISION]})):
        path, table = folder / csv_name(kind, *group), tables[kind].get(group)
        if group not in expected:
            there = ", ".join(f"{machine} section {section:02d}" for machine, section in expected)
            findings.error(path, f"no such machine and section in {source}; it has {there}")
        elif table is None:
            findings.error(path, f"missing; there are clips for it in {source}")
        else:
            if lost := sorted(expected[group] - table.keys()):
                findings.error(path, f"no usable row for {_some(lost)} of {source}")
            if unknown := sorted(table.keys() - expected[group]):
                findings.error(path, f"no such test clip in {source}: {_some(unknown)}")


def _check_decisions(folder: Path, tables: Tables, findings: Findings) -> None:
    """Some threshold on the scores must give exactly the decisions."""
    for group, decisions in tables[DECISION].items():
        path, scores = folder / csv_name(DECISION, *group), tables[SCORE].get(group, {})
        normal = [(scores[clip], clip) for clip, decision in decisions.items() if not decision and clip in scores]
        anomalous = [(scores[clip], clip) for clip, decision in decisions.items() if decision and clip in scores]
        if not normal or not anomalous:
            findings.warning(path, "all clips are decided alike")
            continue
        (top, clip), (bottom, other) = max(normal), min(anomalous)
        if top >= bottom:
            both = f"{clip} is 0 with score {top!r}, {other} is 1 with score {bottom!r}"
            findings.error(path, f"no threshold on the scores gives these decisions: {both}")


def _measured(scores: Mapping[Group, Table], index: pa.Table) -> dict[str, MachineMetrics]:
    """Official metrics of the machines whose labels are known and whose scores are complete."""
    labelled = index.filter(pc.is_valid(index["condition"]))
    clips = labelled.select(["machine", "section", "clip"]).to_pylist()
    score = pa.array([scores.get((c["machine"], c["section"]), {}).get(c["clip"]) for c in clips], pa.float64())
    incomplete = labelled.filter(score.is_null())["machine"]
    table = labelled.append_column("score", score).filter(pc.invert(pc.is_in(labelled["machine"], incomplete)))
    return official_metrics(table).machines if table.num_rows else {}


def _check_meta(
    path: Path, files: Files, measured: Mapping[str, MachineMetrics], findings: Findings
) -> tuple[str, ...]:
    """A meta file in the challenge's form with the label and the results of its folder; what is to be filled in."""
    if path not in files:
        findings.error(path, "missing; each system has a meta file")
        return ()
    raw = None
    try:
        raw = read_yaml(files[path], path)
        validated(Meta, raw, str(path))
    except InputError as error:
        findings.errors += str(error).splitlines()
    if (label := _at(raw, "submission", "label")) not in (None, path.parent.name):
        findings.error(path, f"submission.label is {label!r}, and the folder is {path.parent.name!r}")
    for machine, cell in product(measured, CELLS):
        value, keys = getattr(measured[machine], cell), ("results", "development_dataset", machine, cell)
        stated = _at(raw, *keys)
        if value is None or (isinstance(stated, (int, float)) and value - ROUNDING <= stated <= value + ROUNDING):
            continue
        add = findings.warning if stated is None else findings.error  # results are voluntary
        told = "not stated; it can be" if stated is None else f"not what the scores give: {stated} instead of"
        add(path, f"{'.'.join(keys)}: {told} {value:.2f} per cent")
    return tuple(key for key, _ in unfilled(raw))


def _at(raw: Any, *keys: str) -> Any:
    for key in keys:
        raw = raw.get(key) if isinstance(raw, dict) else None
    return raw
