"""What was trained with what, how it went, and what it cost: tables and figures of the branches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import LogLocator

from orchestrator.ledger.folders import Record
from orchestrator.report.collect import Run
from orchestrator.report.drawing import (
    BLUE,
    COLOURS,
    DASHES,
    GREY,
    ORANGE,
    WIDTH,
    as_svg,
    figure,
    legend,
    matrix,
    panels,
)

_NUMBERS_UP_TO = 80  # score tables, with a number in each cell of the heat map
_PANELS_UP_TO = 48  # of learning curves
_BRANCHES: dict[str, Any] = {"s": 18, "color": GREY, "label": "branches, in-sample"}
_SYSTEMS: dict[str, Any] = {"s": 42, "marker": "D", "color": BLUE, "label": "systems, LOMO", "zorder": 3}
CHANCE = 50.0  # Omega of scores that know nothing, in per cent


def heat_map(run: Run) -> Markup | None:
    """The harmonic mean of AUC source, AUC target and pAUC of each table on each machine; None without labels."""
    tables, machines = [table for table in run.tables if table["omega"] is not None], run.machines
    if not tables:
        return None
    values = np.array([[_value(table, machine) for machine in machines] + [table["omega"]] for table in tables])
    names = [f"{table['branch']} {table['detector']}".strip() for table in tables]
    limits = (min(CHANCE, float(np.nanmin(values))), float(np.nanmax(values)))
    numbers = len(tables) <= _NUMBERS_UP_TO
    return matrix(values, names, [*machines, "Omega"], "Branches by machine", numbers, "{:.1f}", limits)


def _value(table: Mapping[str, Mapping[str, Mapping[str, float | None]]], machine: str) -> float:
    value = table["machines"].get(machine, {}).get("hmean")
    return np.nan if value is None else value


def configurations(run: Run) -> dict[str, list[Record]]:
    """The records of each configuration's seeds, by its name: the branch's without the seed."""
    by_name: dict[str, list[Record]] = {}
    for record in run.records.values():
        by_name.setdefault(record.name.rpartition("/")[0] or record.name, []).append(record)
    return dict(sorted(by_name.items()))


def learning_curves(run: Run) -> Markup | None:
    """Training loss of each configuration, one line per seed; None if nothing was trained."""
    curves = {name: [r.curve for r in seeds if r.curve] for name, seeds in configurations(run).items()}
    drawn_curves = [(name, seeds) for name, seeds in curves.items() if seeds][:_PANELS_UP_TO]
    if not drawn_curves:
        return None
    drawn, axes = panels(len(drawn_curves), height=1.8)
    for panel, (name, seeds) in zip(axes, drawn_curves, strict=True):
        for i, curve in enumerate(seeds):
            step, loss = zip(*curve, strict=True)
            panel.plot(step, loss, color=COLOURS[i % len(COLOURS)], ls=DASHES[i % len(DASHES)], lw=1.1)
        panel.set_title(name, fontsize=8)
        panel.tick_params(labelsize=7.5)
    drawn.supxlabel("step", fontsize=9)
    drawn.supylabel("training loss", fontsize=9)
    return as_svg(drawn, "Learning curves")


def settings(run: Run) -> tuple[list[str], list[tuple[str, list[str]]], dict[str, str]]:
    """Names of the settings that differ, their values for each configuration, and the settings that all share."""
    params = {name: seeds[0].params for name, seeds in configurations(run).items()}
    keys = sorted({key for values in params.values() for key in values if key != "seed"})
    differing = [key for key in keys if len({values.get(key) for values in params.values()}) > 1]
    rows = [(name, [values.get(key, "–") for key in differing]) for name, values in params.items()]
    first = next(iter(params.values()), {})
    return differing, rows, {key: first[key] for key in keys if key not in differing}


@dataclass(frozen=True)
class Cost:
    """What a system's branches took, each counted once; hours.

    points: Omega above chance, on held-out machines where that is known
    """

    system: str
    branches: int
    wall: float
    cpu: float
    gpu: float
    points: float | None

    @property
    def hours(self) -> float:
        """On GPUs, or on CPUs where there was none."""
        return self.gpu or self.cpu

    @property
    def unit(self) -> str:
        """Of `hours`."""
        return "GPU" if self.gpu else "CPU"

    @property
    def per_point(self) -> float | None:
        """Hours per point of Omega above chance."""
        return self.hours / self.points if self.points and self.points > 0 else None


def costs(run: Run) -> list[Cost]:
    """The cost of every system."""
    system_costs = []
    for system in run.systems:
        records = [run.records[branch_id] for branch_id in system.branch_ids if branch_id in run.records]
        delivered = system.result["delivered"]
        omega = delivered["lomo"] if delivered["lomo"] is not None else delivered["in_sample"]
        wall, cpu, gpu = (sum(_hours(record, kind) for record in records) for kind in ("", "cpus", "gpus"))
        system_costs.append(Cost(system.name, len(records), wall, cpu, gpu, None if omega is None else omega - CHANCE))
    return system_costs


def _hours(record: Record, resource: str) -> float:
    """Wall hours of a branch, times how much of a resource it held."""
    share = record.metrics.get(resource, 0.0) if resource else 1.0
    return record.metrics.get("seconds", 0.0) * share / 3600


def cost_figure(run: Run) -> Markup | None:
    """Omega against hours, of branches and of systems; None without labels or without times."""
    unit = "gpus" if any(cost.gpu for cost in costs(run)) else "cpus"
    branches = [
        (_hours(run.records[table["table"].partition("/")[0]], unit), table["omega"])
        for table in run.tables
        if table["omega"] is not None and table["table"].partition("/")[0] in run.records
    ]
    systems = [(cost.hours, cost.points + CHANCE, cost.system) for cost in costs(run) if cost.points and cost.hours]
    branches = [branch for branch in branches if branch[0]]
    if not branches or not systems:
        return None
    drawn = figure(WIDTH * 0.6, 3.0)
    axes = drawn.subplots()
    per_hour, period = (1, "hours") if max(system[0] for system in systems) > 1 else (60, "minutes")
    branches = [(per_hour * hours, omega) for hours, omega in branches]
    systems = [(per_hour * hours, omega, name) for hours, omega, name in systems]
    for points, look in ((branches, _BRANCHES), (systems, _SYSTEMS)):
        axes.scatter([point[0] for point in points], [point[1] for point in points], **look)
    for hours, omega, name in systems:
        axes.annotate(name, (hours, omega), (6, 4), textcoords="offset points")
    axes.axhline(CHANCE, color=ORANGE, ls="--", lw=1, label="chance")
    axes.set(xscale="log", xlabel=f"{unit.upper()[:-1]}-{period}", ylabel="Omega (%)")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    legend(drawn, [axes])
    return as_svg(drawn, "Omega against cost")
