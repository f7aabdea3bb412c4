"""The page itself: figures and tables, set into the template."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, PackageLoader, StrictUndefined

from orchestrator.ledger.folders import REPORT
from orchestrator.report import figures
from orchestrator.report.collect import System, collect, published
from orchestrator.report.sound import most_wrong
from orchestrator.report.verdict import differences
from scoring.atomic import atomic
from scoring.bootstrap import Interval, bootstrap_intervals
from scoring.metrics import official_metrics

_Cell = tuple[float | None, Interval | None]


def write_report(out: Path, audio: int = 0, data: Path | None = None, ground_truth: Path | None = None) -> Path:
    """Write `out/report.html` from the results in a folder of `tutti run` or `tutti fuse`, and return its path.

    Parameters
    ----------
    audio: with so many false alarms and misses of each system to listen to
    data: where their recordings are; None looks where the run had them
    ground_truth: folder of labels that came later; systems are also measured on its machines, and no result changes

    Raises InputError if there is no result, or one is damaged.
    """
    systems, notes = collect(out, ground_truth)
    tables = {table["table"]: table for system in systems for table in system.result["branches"]}.values()
    machines = sorted({machine for table in tables for machine in table["machines"]})
    best = max(systems, key=lambda system: system.result["omega"] or 0.0)
    environment = Environment(
        loader=PackageLoader("orchestrator", "templates/report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(typeset=figures.typeset, signed=partial(figures.typeset, form="+.2f"), quote=shlex.quote)
    environment.globals.update(
        bootstrap_intervals=bootstrap_intervals, metrics=official_metrics, published=published, zip=zip
    )
    with matplotlib.rc_context(figures.STYLE):
        page = environment.get_template("report.html").render(
            name=out.resolve().name,
            folder=str(out),
            systems=systems,
            notes=notes,
            tables=tables,
            machines=machines,
            best=best,
            differences=differences(best, systems),
            rows=_rows(systems, machines),
            branches=_branches(tables, machines),
            figures=figures,
            recordings={system.result["system"]: most_wrong(system, audio, data) for system in systems if audio},
        )
    path = out / REPORT
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _rows(systems: Sequence[System], machines: Sequence[str]) -> list[tuple[str, list[_Cell]]]:
    """The rows of the first table, the machines and Omega; in-sample and LOMO cells of each system alternate."""
    columns = [column for system in systems for column in _columns(system)]
    return [(name, [column.get(name, (None, None)) for column in columns]) for name in [*machines, "Omega"]]


def _columns(system: System) -> Iterator[dict[str, _Cell]]:
    """In-sample and LOMO: Omega and the harmonic mean of each machine, with their intervals."""
    delivered = system.result["delivered"]
    for kind in ("in_sample", "lomo"):
        column = {}
        if measured := system.result["machines"][kind]:
            intervals = system.intervals[kind]
            column = {name: (values["hmean"], intervals.machines[name]["hmean"]) for name, values in measured.items()}
            column["Omega"] = delivered[kind], delivered["ci"] if kind == "lomo" else intervals.omega
        yield column


def _branches(tables: Iterable[dict[str, Any]], machines: Sequence[str]) -> list[tuple[str, list[float | None]]]:
    """The score tables, the best first: harmonic mean of AUC source, AUC target and pAUC by machine, and Omega."""
    rows = [
        (
            f"{table['branch']} {table['detector']}".strip(),
            [*(table["machines"].get(machine, {}).get("hmean") for machine in machines), table["omega"]],
        )
        for table in tables
        if table["omega"] is not None
    ]
    return sorted(rows, key=lambda row: (-row[1][-1], row[0]))
