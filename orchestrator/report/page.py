"""The page itself: figures and tables, set into the template."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined

from orchestrator.fuse.result import below_baseline, how_measured, rows_of_methods
from orchestrator.ledger.folders import REPORT
from orchestrator.report import figures
from orchestrator.report.collect import System, collect, labelled, published
from orchestrator.report.monitoring import monitoring
from orchestrator.report.sound import most_wrong
from orchestrator.report.verdict import differences
from scoring.atomic import atomic
from scoring.bootstrap import Interval, Intervals, bootstrap_intervals
from scoring.ground_truth import GroundTruth, read_ground_truth
from scoring.metrics import official_metrics

_Cell = tuple[float | None, Interval | None]
_Measured = tuple[Mapping[str, Any], Intervals]  # `omega` and `machines`


def write_report(out: Path, audio: int = 0, data: Path | None = None, ground_truth: Path | None = None) -> Path:
    """Write `out/report.html` from the results in a folder of `tutti run` or `tutti fuse`, and return its path.

    Parameters
    ----------
    audio: with so many false alarms and misses of each system to listen to
    data: where their recordings are; None looks where the run had them
    ground_truth: folder of labels that came later; systems are also measured on its machines, and no result changes

    Raises InputError if there is no result, or one is damaged.
    """
    systems, notes = collect(out)
    of_all = [table for system in systems for table in system.result["branches"]]
    tables = {(table["branch"], table["table"]): table for table in of_all}.values()
    best = max(systems, key=lambda system: system.result["omega"] or 0.0)
    machines = sorted({machine for system in systems for machine in system.machines})
    hidden = sorted({*best.fused["machine"].to_pylist()} - {*machines})
    environment = Environment(
        loader=PackageLoader("orchestrator", "templates/report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(typeset=figures.typeset, signed=partial(figures.typeset, form="+.2f"), quote=shlex.quote)
    environment.filters["between"] = _between
    environment.globals.update(
        below_baseline=below_baseline,
        how_measured=how_measured,
        published=published,
        rows_of=lambda columns: _rows(columns.values()),
        rows_of_methods=rows_of_methods,
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
            measured=_held_out(systems) if machines else {},
            revealed=_revealed(systems, read_ground_truth(ground_truth)) if ground_truth else {},
            hidden=hidden,
            branches=_branches(tables, machines),
            monitoring={} if machines else {s.result["system"]: monitoring(s, out, data) for s in systems},
            figures=figures,
            recordings={system.result["system"]: most_wrong(system, audio, data) for system in systems if audio},
        )
    path = out / REPORT
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _between(values: Sequence[float] | None, form: str) -> str:
    """Two numbers as `1 to 2`, or one where they look alike; a dash for none."""
    return " to ".join(dict.fromkeys(figures.typeset(value, form) for value in values)) if values else "–"


def _held_out(systems: Sequence[System]) -> dict[str, _Measured]:
    """The baseline and the systems on labelled clips, as far as there are any."""
    tables = {s.result["baseline"]["name"]: labelled(s.baseline) for s in systems if s.baseline is not None}
    columns = {name: _measured(table) for name, table in tables.items() if table is not None}
    of_systems = {s.result["system"]: ({**s.result, "machines": s.machines}, i) for s in systems if (i := s.intervals)}
    return columns | of_systems


def _revealed(systems: Sequence[System], truth: GroundTruth) -> dict[str, _Measured]:
    """The same by ground truth that came later, of which no result knows."""
    tables = {s.result["baseline"]["name"]: s.baseline for s in systems if s.baseline is not None}
    tables |= {s.result["system"]: s.fused for s in systems}
    return {name: _measured(truth.revealed(table)) for name, table in tables.items()}


def _measured(table: pa.Table) -> _Measured:
    return official_metrics(table).as_dict(), bootstrap_intervals(table)


def _rows(columns: Collection[_Measured]) -> list[tuple[str, list[_Cell]]]:
    """Harmonic mean of each machine, and last Omega, with intervals; a dash in the columns that lack a machine."""
    rows = [
        (name, [(m["machines"].get(name, {}).get("hmean"), i.machines.get(name, {}).get("hmean")) for m, i in columns])
        for name in sorted({name for measured, _ in columns for name in measured["machines"]})
    ]
    return [*rows, ("Omega", [(measured["omega"], intervals.omega) for measured, intervals in columns])]


def _branches(tables: Iterable[dict[str, Any]], machines: Sequence[str]) -> list[tuple[str, list[float | None]]]:
    """The score tables, the best first: harmonic mean of AUC source, AUC target and pAUC by machine, and Omega."""
    rows = [
        (
            table["branch"],
            [*(table["machines"].get(machine, {}).get("hmean") for machine in machines), table["omega"]],
        )
        for table in tables
        if table["omega"] is not None
    ]
    return sorted(rows, key=lambda row: (-row[1][-1], row[0]))
