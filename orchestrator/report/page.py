"""The page itself: figures and tables, set into the template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from orchestrator.report import branches, fusions, separation
from orchestrator.report.collect import Run, System, collect
from orchestrator.report.drawing import style
from scoring.atomic import atomic
from scoring.bootstrap import Interval

REPORT = "report.html"
_MATRIX_UP_TO = 400  # score tables with a row in the heat map; more cannot be read


def write_report(out: Path, dataset: str | None = None) -> Path:
    """Write `out/report.html` from the results in a folder of `tutti run` or `tutti fuse`, and return its path.

    With a data set's fingerprint, results on other data that lie in the same folder are left out.

    Raises
    ------
    InputError
        If there is no result, or one is damaged.
    """
    run = collect(out, dataset)
    environment = Environment(
        loader=PackageLoader("orchestrator", "templates/report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = _percent
    with style():
        page = environment.get_template("report.html").render(
            run=run,
            rows=_table(run),
            figures={system.name: _figures(system) for system in run.systems},
            heat_map=branches.heat_map(run) if len(run.tables) <= _MATRIX_UP_TO else None,
            curves=branches.learning_curves(run),
            settings=branches.settings(run),
            costs=branches.costs(run),
            cost_figure=branches.cost_figure(run),
        )
    path = out / REPORT
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _figures(system: System) -> dict[str, Any]:
    return {
        "tree": fusions.weight_tree(system),
        "methods": fusions.methods(system),
        "pruning": fusions.pruning(system),
        "correlation": fusions.correlation(system),
        "roc": separation.roc(system),
        "distributions": separation.distributions(system),
    }


@dataclass(frozen=True)
class _Cell:
    """What a system reaches on one machine, or on all; None where it was not measured."""

    in_sample: float | None
    lomo: float | None
    interval: Interval | None
    lomo_interval: Interval | None = None


def _table(run: Run) -> list[tuple[str, list[_Cell]]]:
    """The rows of the first table, with a cell for each system: the machines, and Omega."""
    rows = [(machine, [_on_machine(system, machine) for system in run.systems]) for machine in run.machines]
    return [*rows, ("Omega", [_overall(system) for system in run.systems])]


def _on_machine(system: System, machine: str) -> _Cell:
    intervals = system.intervals.machines.get(machine, {}) if system.intervals else {}
    measured = system.result["machines"]
    in_sample, lomo = ((measured[kind] or {}).get(machine, {}).get("hmean") for kind in ("in_sample", "lomo"))
    return _Cell(in_sample, lomo, intervals.get("hmean"))


def _overall(system: System) -> _Cell:
    delivered = system.result["delivered"]
    interval = system.intervals.omega if system.intervals else None
    return _Cell(delivered["in_sample"], delivered["lomo"], interval, delivered["ci"])


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".replace("-", "−")  # as typeset
