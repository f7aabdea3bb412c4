"""What MLflow shows of a branch, a system and a run folder: figures under names that its UI groups, and a line of text.

A slash in a metric's name makes a section in the UI, so what people compare stands alone: `omega`, which every run has,
and `loss`. Beside them `hmean/<machine>`, `auc_source/<machine>`, … and `cost/…`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path

from orchestrator.fuse.result import read_result
from orchestrator.ledger.folders import (
    BRANCHES,
    FAILURES,
    FUSED,
    HELD_OUT,
    REASON,
    RECORD,
    REPORT,
    RESULT,
    SYSTEMS,
    Record,
    Status,
    read_record,
)
from scoring.errors import InputError, counted
from scoring.table import file_sha256

FORM = 4  # of what is shown; with another number everything is sent anew, once
# Weights and embeddings stay in the ledger: MLflow would only hold a second copy of what nobody looks at there.
_LARGE = (".npy", ".pt")
_TEXT = 7500  # characters of a description, which MLflow cuts at 8000
_NAME = 200  # characters of a metric's name, of which MLflow takes 250
_OTHER_CHARACTERS = re.compile(r"[^\w./ -]|(?<![^/])\.\.?(?![^/])")  # a name `.` or `..` would be a folder
_DECIMALS = 3  # of a metric, which the UI would cut at the width of its column; the tables have all


@dataclass(frozen=True)
class Shown:
    """What one MLflow run shows.

    identity: tags by which it is found among the runs of its output folder
    text: its description
    files: artifacts, by path within `folder`
    curve: pairs of step and loss
    """

    name: str
    identity: dict[str, str]
    text: str
    folder: Path
    files: Sequence[str]
    status: Status = "FINISHED"
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    curve: Sequence[tuple[int, float]] = ()

    @property
    def note(self) -> str:
        """The description as Markdown that shows the text as it is, in one line."""
        return re.sub(r"([*_<>|`\[\]])", r"\\\1", " ".join(self.text.split()))[:_TEXT]


def marks(out: Path) -> dict[Path, str]:
    """The records of branches and results of systems in a run folder, each with what stands for its content.

    Of a branch that has failed at its last try, only that is shown.
    """
    latest = {}
    for kind, file in ((BRANCHES, RECORD), (FAILURES, RECORD), (SYSTEMS, RESULT)):
        folder = out / kind
        for name in sorted(os.listdir(folder)) if folder.exists() else ():
            path = f"{folder}/{name}/{file}"
            with suppress(FileNotFoundError, NotADirectoryError):  # a failure's goes when its branch is tried again
                state = os.stat(path)
                latest[kind == SYSTEMS, name] = _marked(path, state.st_ino, state.st_size, state.st_mtime_ns)
    return dict(latest.values())


@cache
def _marked(path: str, *state: int) -> tuple[Path, str]:
    """A file and its mark, made anew when the file is replaced or changed: they are looked at every few seconds."""
    return Path(path), mark_of(Path(path))


def mark_of(path: Path) -> str:
    """What stands for a record or result, and so for the files that it has checksums of, and for the form shown."""
    return f"{FORM}-{file_sha256(path)[:16]}"


def shown(path: Path) -> Shown | None:
    """What MLflow shows of a record or result; None of one that is damaged, or older, or of a branch without scores."""
    if path.name == RESULT:
        return _system(path.parent)
    record = read_record(path.parent)
    return _branch(path.parent, record) if record and (record.tables or record.status == "FAILED") else None


def _branch(folder: Path, record: Record) -> Shown:
    # A record of an older tutti has no names of its tables.
    names = {table: record.names.get(table, [record.name]) for table in record.tables or record.names}
    known = [(called, record.metrics.get(f"{table}.omega")) for table, called in names.items()]
    of_which = "" if len(names) == 1 else " ({})"
    omegas = [f"{omega:.2f} %{of_which.format(called[0])}" for called, omega in known if omega is not None]
    text = f"Omega {', '.join(omegas)}" if omegas else "No labels to measure it by"
    if record.status == "FAILED":
        text = f"Failed: {record.tags['failure']} ({REASON} among the artifacts has the whole of it)"
    configurations = {table: [name.rpartition("/")[0] for name in called] for table, called in names.items()}
    return Shown(
        _listed([called[:1] for called in names.values()]) or record.name,
        record.identity,
        text,
        folder,
        [*(file for file in record.files if not file.endswith(_LARGE)), RECORD],
        record.status,
        {**record.tags, "configuration": _listed(configurations.values())},
        {key: value for key, value in record.params.items() if value != "null"},
        _figures(record.metrics, {table: called[0] for table, called in configurations.items()}),
        record.curve,
    )


def _listed(names: Iterable[Sequence[str]]) -> str:
    return ", ".join(dict.fromkeys(chain.from_iterable(names)))


def _figures(metrics: Mapping[str, float], tables: Mapping[str, str]) -> dict[str, float]:
    """`knn.fan.hmean` → `hmean/fan` of the first table, which gives the branch its Omega; `a/b/hmean/fan` of another.

    tables: the configuration of each

    `seconds` → `cost/seconds`. Names of tables and machines may have dots. Of a table that is lost nothing is shown.
    """
    figures = {f"cost/{name}": value for name, value in metrics.items() if "." not in name}
    for name, value in metrics.items():
        if owners := [table for table in tables if name.startswith(f"{table}.")]:
            owner = max(owners, key=len)
            machine, _, cell = name.removeprefix(f"{owner}.").rpartition(".")
            figure = f"{cell}/{machine}" if machine else cell
            figures[figure if owner == next(iter(tables)) else f"{tables[owner]}/{figure}"] = value
    return _accepted(figures)


def _system(folder: Path) -> Shown | None:
    try:
        result = read_result(folder)
    except InputError:
        return None
    delivered, machines = result["delivered"], result["machines"]
    metrics = {"omega": result["omega"], "omega_in_sample": delivered["in_sample"]}
    metrics["omega_baseline"] = (result.get("baseline") or {}).get("omega")
    for machine, cells in (machines["lomo"] or machines["in_sample"] or {}).items():
        metrics |= {f"{cell}/{machine}": value for cell, value in cells.items()}
    for subsystem, weights in delivered["weights"].items():
        metrics |= {f"weights/{subsystem}/{configuration}": weight for configuration, weight in weights.items()}
    missing = f" Fused without {', '.join(result['missing'])}." if result.get("missing") else ""
    return Shown(
        result["system"],
        {"role": "fusion", "system": result["system"]},
        f"{result['headline']}.{missing} {result.get('description', '')}",
        folder,
        [file for file in (FUSED, HELD_OUT, RESULT) if (folder / file).exists()],
        tags={"method": delivered["method"], "fusion_id": result["fusion_id"]},
        metrics=_accepted(metrics),
    )


def shown_run(out: Path, record: Record, parts: Sequence[Shown]) -> Shown:
    """What MLflow shows of a run folder with these branches and systems."""
    ended = Counter(part.status for part in parts if part.identity["role"] == "branch")
    omegas = [part.metrics["omega"] for part in parts if part.identity["role"] == "fusion" and "omega" in part.metrics]
    files = run_files(out)
    return Shown(
        record.name,
        record.identity,
        f"{counted(ended['FINISHED'], 'branch')} finished, {ended['FAILED']} failed"
        + (f"; {REPORT} among the artifacts has figures and intervals" if REPORT in files else ""),
        out,
        files,
        record.status,
        record.tags,
        metrics={"omega": max(omegas)} if omegas else {},
    )


def run_files(out: Path) -> list[str]:
    """Artifacts of a run folder as a whole, by path within it."""
    paths = [out / REPORT, *sorted(out.glob("generated/*/check.json"))]
    return [path.relative_to(out).as_posix() for path in paths if path.exists()]


def _accepted(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """What is known, under names that MLflow takes: few characters, and not many; two names never become one."""
    names = {name: _OTHER_CHARACTERS.sub("_", name)[:_NAME] for name in metrics}
    for name, accepted in names.items():
        if accepted != name:
            names[name] = f"{accepted}_{hashlib.sha256(name.encode()).hexdigest()[:4]}"
    return {names[name]: round(value, _DECIMALS) for name, value in metrics.items() if value is not None}
