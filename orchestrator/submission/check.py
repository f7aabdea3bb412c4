"""The check of a package, one of `tutti submission make` or any other team's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc

from branches.data.dataset import index_of
from orchestrator.submission.archive import read_package
from orchestrator.submission.files import (
    AUTHORS_FORM,
    CSV_NAME,
    KINDS,
    MAX_SYSTEMS,
    SYSTEM_LABEL,
    challenge_machines,
    csv_name,
)
from orchestrator.submission.findings import Findings, some
from orchestrator.submission.score_files import Pairs, check_clips, check_decisions, check_scores, read_pairs
from orchestrator.submission.stated import Results, check_against_scores, read_meta
from scoring.errors import InputError
from scoring.ground_truth import read_ground_truth
from scoring.metrics import CELLS, official_metrics
from scoring.table import conform

Group = tuple[str, int]


@dataclass
class System:
    """One system's files in a package.

    label: its folder's name
    """

    folder: str
    label: str
    tables: dict[str, dict[Group, Pairs]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    metas: list[str] = field(default_factory=list)


def check_package(path: Path, data: Path | None = None, ground_truth: Path | None = None) -> Findings:
    """Everything that is wrong with a package, a folder or a zip file.

    Parameters
    ----------
    data: data set whose test clips the package must have, with hidden labels or known ones; without it the systems
        are held against each other only
    ground_truth: folder of labels that came later; they give metrics, and no finding

    Raises
    ------
    InputError
        If there is no package at `path`, no data set at `data`, no ground truth, or not for the package's clips.
    """
    findings = Findings()
    truth = None if ground_truth is None else read_ground_truth(ground_truth)
    index = None if data is None else _test_clips(data)
    files = {name: content for name, content in read_package(path, findings).items() if name != AUTHORS_FORM}
    systems = _systems(path, files, findings)
    _check_labels(systems, findings)
    for system in systems:
        _check_system(system, files, index, str(data), findings)
        if truth is not None and any(system.tables[KINDS[0]].values()):
            findings.metrics[system.label] = official_metrics(truth.revealed(_score_table(system)))
    if index is None:
        _check_alike(systems, findings)
    _check_different(systems, findings)
    if not any(name.lower().endswith(".pdf") for name in files):
        findings.warning(path.name, "no technical report (PDF) in it")
    return findings


def _test_clips(data: Path) -> pa.Table:
    """The clip index of a data set's test clips; an evaluation set may come without training clips."""
    paths = [path.relative_to(data).as_posix() for path in sorted(data.glob("*/*test/*.wav"))]
    if not paths:
        raise InputError(f"{data}: not a data set: no <machine>/test/*.wav in it")
    return index_of(paths)


def _systems(package: Path, files: Mapping[str, bytes], findings: Findings) -> list[System]:
    """Folders with tables or a meta file; a meta file may lie beside the folder that it is named after."""
    systems: dict[str, System] = {}
    for name in files:
        if name.endswith(".csv"):
            folder = PurePosixPath(name).parent
            # A system's own folder may be given as the package.
            label = folder.name or (package.resolve().name if package.is_dir() else "")
            _add_table(systems.setdefault(str(folder), System(str(folder), label)), name, files[name], findings)
    for name in files:
        if name.endswith((".yaml", ".yml")):
            _add_meta(systems, name, findings)
        elif not name.lower().endswith((".csv", ".pdf")):
            findings.warning(name, "not a file of a package")
    if not systems:
        findings.error(package.name, f"no system in it: no folder with {csv_name(KINDS[0], '<machine>', 0)}")
    return list(systems.values())


def _add_table(system: System, name: str, content: bytes, findings: Findings) -> None:
    match = CSV_NAME.fullmatch(PurePosixPath(name).name)
    if match is None:
        forms = " or ".join(csv_name(kind, "<machine>", 0) for kind in KINDS)
        findings.error(name, f"not a table's name; must be {forms}")
        return
    kind, group = match["kind"], (match["machine"], int(match["section"]))
    system.tables[kind][group] = read_pairs(name, content, kind, findings)


def _add_meta(systems: Mapping[str, System], name: str, findings: Findings) -> None:
    path = PurePosixPath(name)
    owner = systems.get(str(path.parent))
    named = [s for s in systems.values() if path.name.removesuffix(path.suffix).removesuffix(".meta") == s.label]
    if owner or named:
        (owner or named[0]).metas.append(name)
    else:
        findings.error(name, "belongs to no system: there are no tables in its folder")


def _check_labels(systems: list[System], findings: Findings) -> None:
    if len(systems) > MAX_SYSTEMS:
        names = ", ".join(s.label for s in systems)
        findings.error(systems[-1].folder, f"{len(systems)} systems, at most {MAX_SYSTEMS} are allowed: {names}")
    teams: dict[str, str] = {}
    labels: dict[str, str] = {}
    for system in systems:
        label = SYSTEM_LABEL.fullmatch(system.label)
        if label is None:
            location = system.folder if system.label else next(iter(_paths(system)), system.folder)
            findings.error(
                location, f"the folder {system.label!r} is no label such as Jiang_THU_task2_1, numbered 1 to 4"
            )
            continue
        if system.label in labels:
            findings.error(system.folder, f"the same label as {labels[system.label]}; number the systems")
        labels[system.label] = system.folder
        teams.setdefault(label["team"], system.label)
    if len(teams) > 1:
        findings.error(list(teams.values())[1], f"another team's label than {next(iter(teams.values()))}")
    numbers = sorted(int(label[-1]) for label in labels)
    if numbers and numbers != list(range(1, len(numbers) + 1)):
        findings.warning(next(iter(teams.values())), f"systems are numbered {', '.join(map(str, numbers))}")


def _paths(system: System) -> list[str]:
    return [pairs.path for tables in system.tables.values() for pairs in tables.values()]


def _check_system(
    system: System, files: Mapping[str, bytes], index: pa.Table | None, source: str, findings: Findings
) -> None:
    scores, decisions = (system.tables[kind] for kind in KINDS)
    for group in sorted({*scores, *decisions}):
        for kind in KINDS:
            if group not in system.tables[kind]:
                findings.error(
                    _path(system, csv_name(kind, *group)), "missing; each machine and section has both tables"
                )
        if group in scores and group in decisions:
            _check_pair(scores[group], decisions[group], findings)
        if group in scores:
            check_scores(scores[group], findings)
    if index is not None:
        _check_data(system, index, source, findings)
    _check_meta(system, files, index, findings)


def _path(system: System, name: str) -> str:
    return str(PurePosixPath(system.folder) / name)


def _check_pair(scores: Pairs, decisions: Pairs, findings: Findings) -> None:
    for here, there in ((scores, decisions), (decisions, scores)):
        lost = [clip for clip in there.values if clip not in here.values]
        if lost:
            findings.error(here.path, f"no usable row for {some(lost)}, which {PurePosixPath(there.path).name} has")
    check_decisions(scores, decisions, findings)


def _check_data(system: System, index: pa.Table, source: str, findings: Findings) -> None:
    """Tables for each machine and section that must be there, with its clips."""
    required = set(challenge_machines(index))
    clips: dict[Group, list[str]] = {}
    for machine, section, clip in zip(*(index[c].to_pylist() for c in ("machine", "section", "clip")), strict=True):
        clips.setdefault((machine, section), []).append(clip)
    for kind, tables in system.tables.items():
        for group, expected in clips.items():
            if group in tables:
                check_clips(tables[group], expected, f"{source}/{group[0]}", findings)
            elif group[0] in required and not any(group in other for other in system.tables.values()):
                findings.error(_path(system, csv_name(kind, *group)), f"missing; {source} has test clips for it")
        for group in tables.keys() - clips.keys():
            expected_groups = ", ".join(f"{machine} section {section:02d}" for machine, section in clips)
            findings.error(tables[group].path, f"no such machine and section in {source}; it has {expected_groups}")


def _check_meta(system: System, files: Mapping[str, bytes], index: pa.Table | None, findings: Findings) -> None:
    if not system.metas:
        findings.error(_path(system, f"{system.label}.meta.yaml"), "missing; each system has a meta file")
        return
    if len(system.metas) > 1:
        findings.error(system.metas[1], f"a second meta file of the system beside {system.metas[0]}")
    path = system.metas[0]
    if PurePosixPath(path).name != f"{system.label}.meta.yaml":
        findings.warning(path, f"should be called {system.label}.meta.yaml")
    stated = read_meta(path, files[path], findings)
    if stated.label not in (None, system.label):
        findings.error(path, f"submission.label is {stated.label!r}, the folder is {system.label!r}")
    if index is not None:
        check_against_scores(path, stated, _computed(system, index), findings)


def _computed(system: System, index: pa.Table) -> Results:
    """Official metrics, in per cent, of the machines whose labels are known and whose scores are complete."""
    rows = index.filter(pc.is_valid(index["condition"]))
    keys = zip(*(rows[c].to_pylist() for c in ("machine", "section", "clip")), strict=True)
    tables = system.tables[KINDS[0]]
    scores = [tables[m, s].values.get(clip) if (m, s) in tables else None for m, s, clip in keys]
    rows = rows.append_column("score", pa.array(scores, pa.float64()))
    partial = pc.unique(rows.filter(pc.is_null(rows["score"]))["machine"])
    rows = rows.filter(pc.invert(pc.is_in(rows["machine"], partial)))
    if not rows.num_rows:
        return {}
    cells = {m: {c: getattr(v, c) for c in CELLS} for m, v in official_metrics(rows).machines.items()}
    return {m: {c: v for c, v in values.items() if v is not None} for m, values in cells.items()}


def _score_table(system: System) -> pa.Table:
    rows = [
        {"machine": machine, "section": section, "clip": clip, "score": score}
        for (machine, section), pairs in system.tables[KINDS[0]].items()
        for clip, score in pairs.values.items()
    ]
    return conform(pa.Table.from_pylist(rows), system.label)


def _check_alike(systems: list[System], findings: Findings) -> None:
    """Without a data set at hand: all systems score the same clips."""
    first: dict[Group, tuple[str, set[str]]] = {}
    for system in systems:
        for group, pairs in system.tables[KINDS[0]].items():
            label, clips = first.setdefault(group, (system.label, set(pairs.values)))
            if lost := clips ^ pairs.values.keys():
                findings.error(pairs.path, f"other clips than in {label}: {some(sorted(lost))}")
    for system in systems:
        for group in first.keys() - system.tables[KINDS[0]].keys() - system.tables[KINDS[1]].keys():
            findings.error(_path(system, csv_name(KINDS[0], *group)), f"missing; {first[group][0]} has it")


def _check_different(systems: list[System], findings: Findings) -> None:
    seen: dict[object, str] = {}
    for system in systems:
        scores = {group: pairs.values for group, pairs in system.tables[KINDS[0]].items()}
        content = tuple((group, tuple(sorted(scores[group].items()))) for group in sorted(scores))
        if content in seen:
            findings.warning(system.folder, f"the same scores as {seen[content]}")
        seen.setdefault(content, system.label)
