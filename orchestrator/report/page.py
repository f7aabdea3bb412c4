"""The page itself: figures and tables, set into the template."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import matplotlib
from jinja2 import Environment, PackageLoader, StrictUndefined

from orchestrator.ledger.folders import REPORT
from orchestrator.report import figures
from orchestrator.report.collect import Run, System, collect
from orchestrator.report.sound import most_wrong
from orchestrator.report.verdict import verdict
from scoring.atomic import atomic
from scoring.bootstrap import Interval, Intervals
from scoring.metrics import official_metrics

_Cell = tuple[float | None, Interval | None]


def write_report(out: Path, audio: int = 0, data: Path | None = None, ground_truth: Path | None = None) -> Path:
    """Write `out/report.html` from the results in a folder of `tutti run` or `tutti fuse`, and return its path.

    Parameters
    ----------
    audio: with so many false alarms and misses of each system to listen to
    data: where their recordings are; None looks where the run had them
    ground_truth: folder of labels that came later; systems are also measured on its machines, and no result changes

    Raises
    ------
    InputError
        If there is no result, or one is damaged.
    """
    run = collect(out, ground_truth)
    environment = Environment(
        loader=PackageLoader("orchestrator", "templates/report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(typeset=figures.typeset, signed=partial(figures.typeset, form="+.2f"))
    with matplotlib.rc_context(figures.STYLE):
        page = environment.get_template("report.html").render(
            run=run,
            verdict=verdict(run),
            rows=_rows(run),
            branches=_branches(run),
            figures=figures,
            metrics=official_metrics,
            zip=zip,
            recordings={system.name: most_wrong(system, audio, data) for system in run.systems if audio},
        )
    path = out / REPORT
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _rows(run: Run) -> list[tuple[str, list[_Cell]]]:
    """The rows of the first table, the machines and Omega; in-sample and LOMO cells of each system alternate."""
    rows = [(machine, [cell for s in run.systems for cell in _on_machine(s, machine)]) for machine in run.machines]
    return [*rows, ("Omega", [cell for system in run.systems for cell in _overall(system)])]


def _on_machine(system: System, machine: str) -> list[_Cell]:
    measured = system.result["machines"]

    def cell(kind: str, intervals: Intervals | None) -> _Cell:
        interval = intervals.machines.get(machine, {}).get("hmean") if intervals else None
        return (measured[kind] or {}).get(machine, {}).get("hmean"), interval

    return [cell("in_sample", system.intervals), cell("lomo", system.held_out_intervals)]


def _overall(system: System) -> list[_Cell]:
    delivered = system.result["delivered"]
    interval = system.intervals.omega if system.intervals else None
    return [(delivered["in_sample"], interval), (delivered["lomo"], delivered["ci"])]


def _branches(run: Run) -> list[tuple[str, list[float | None]]]:
    """Each score table with the harmonic mean of AUC source, AUC target and pAUC by machine, and Omega."""
    return [
        (
            f"{table['branch']} {table['detector']}".strip(),
            [*(table["machines"].get(machine, {}).get("hmean") for machine in run.machines), table["omega"]],
        )
        for table in run.tables
        if table["omega"] is not None
    ]
