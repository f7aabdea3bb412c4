"""The page itself: figures and tables, set into the template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from orchestrator.cost import duration
from orchestrator.report import branches, fusions, published, separation
from orchestrator.report.collect import Run, System, collect
from orchestrator.report.drawing import style
from orchestrator.report.refresh import REPORT, stamp
from orchestrator.report.sound import most_wrong
from orchestrator.report.verdict import verdict
from scoring.atomic import atomic
from scoring.bootstrap import Interval
from scoring.metrics import official_metrics

_MATRIX_UP_TO = 400  # score tables with a row in the heat map; more cannot be read


def write_report(
    out: Path,
    dataset: str | None = None,
    audio: int = 0,
    data: Path | None = None,
    ground_truth: Path | None = None,
) -> Path:
    """Write `out/report.html` from the results in a folder of `tutti run` or `tutti fuse`, and return its path.

    Parameters
    ----------
    dataset: fingerprint of a data set; results on other data that lie in the same folder are left out
    audio: with so many false alarms and misses of each system to listen to
    data: where their recordings are; None looks where the run had them
    ground_truth: folder of labels that came later; systems are also measured on its machines, and no result changes

    Raises
    ------
    InputError
        If there is no result, or one is damaged.
    """
    run = collect(out, dataset, ground_truth)
    environment = Environment(
        loader=PackageLoader("orchestrator", "templates/report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=_percent, signed=_signed, duration=lambda hours: duration(3600 * hours))
    with style():
        page = environment.get_template("report.html").render(
            run=run,
            stamp=stamp(out, dataset),
            verdict=verdict(run),
            recordings={system.name: most_wrong(system, audio, data) for system in run.systems if audio},
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
        "expected": published.expected(system),
        "against_the_report": published.against_the_report(system),
        "revealed": _revealed(system.revealed) if system.revealed else None,
    }


def _revealed(system: System) -> dict[str, Any]:
    metrics = official_metrics(system.fused)
    return {
        "machines": metrics.machines,
        "omega": metrics.omega,
        "intervals": system.intervals,
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
    held_out = system.held_out_intervals.machines.get(machine, {}) if system.held_out_intervals else {}
    return _Cell(in_sample, lomo, intervals.get("hmean"), held_out.get("hmean"))


def _overall(system: System) -> _Cell:
    delivered = system.result["delivered"]
    interval = system.intervals.omega if system.intervals else None
    return _Cell(delivered["in_sample"], delivered["lomo"], interval, delivered["ci"])


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".replace("-", "−")  # as typeset
