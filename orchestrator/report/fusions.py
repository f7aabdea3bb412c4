"""Figures of how a system was put together."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator

from orchestrator.report.collect import System
from orchestrator.report.drawing import BLACK, BLUE, GREY, ORANGE, WIDTH, as_svg, figure, matrix

_BOX = {"facecolor": "white", "edgecolor": "#bbbbbb", "boxstyle": "round,pad=0.3", "linewidth": 0.7}
_NUMBERS_UP_TO = 24  # configurations, with a number in each cell of their correlation


def weight_tree(system: System) -> Markup:
    """Sub-systems and their configurations; a line is as thick as what weighs on it. Right of it, what each adds."""
    marginal = (system.result["complementarity"] or {}).get("marginal", {})
    weights: dict[str, dict[str, float]] = system.result["delivered"]["weights"]
    leaves = [(subsystem, name, weight) for subsystem, c in weights.items() for name, weight in c.items()]
    drawn = figure(WIDTH, 0.7 + 0.27 * len(leaves))
    axes = drawn.subplots()
    axes.axis("off")
    axes.set(xlim=(-0.02, 1.75), ylim=(len(leaves) - 0.5, -1.2))
    axes.text(1.33, -0.9, "weight", ha="right", va="center", color=GREY)
    if marginal:
        axes.text(1.75, -0.9, "LOMO Omega it adds", ha="right", va="center", color=GREY)
    heights = {s: float(np.mean([i for i, leaf in enumerate(leaves) if leaf[0] == s])) for s in weights}
    root = float(np.mean(list(heights.values())))
    axes.text(0, root, system.name, ha="left", va="center", weight="bold", bbox=_BOX, zorder=3)
    for subsystem, height in heights.items():
        share = sum(weights[subsystem].values())
        _branch_line(axes, (0.05, root), (0.42, height), share)
        axes.text(0.42, height, f"{subsystem}  {share:.2f}", ha="left", va="center", bbox=_BOX, zorder=3)
    longest = max(leaf[2] for leaf in leaves)
    for i, (subsystem, name, weight) in enumerate(leaves):
        _branch_line(axes, (0.5, heights[subsystem]), (0.98, i), weight)
        axes.barh(i, 0.25 * weight / longest, 0.5, 1.35, color=BLUE)
        axes.text(1.0, i, name, ha="left", va="center", color=BLACK if weight else GREY)
        axes.text(1.33, i, f"{weight:.3f}", ha="right", va="center", color=BLACK if weight else GREY)
        lost = marginal.get(f"{subsystem}/{name}")
        if lost is not None:
            axes.text(1.75, i, f"{lost:+.2f}".replace("-", "−"), ha="right", va="center", color=BLACK)
    return as_svg(drawn, f"Weights of {system.name}")


def _branch_line(axes: Axes, start: tuple[float, float], end: tuple[float, float], weight: float) -> None:
    middle = (start[0] + end[0]) / 2
    path = Path([start, (middle, start[1]), (middle, end[1]), end], [Path.MOVETO, *[Path.CURVE4] * 3])
    colour = BLUE if weight else GREY
    axes.add_patch(PathPatch(path, fill=False, ec=colour, lw=max(0.5, 9 * weight), alpha=0.55, capstyle="butt"))


def methods(system: System) -> Markup | None:
    """In-sample and LOMO Omega of every method; None without labels, or with nothing to choose."""
    omegas = {name: (m["in_sample"], m["lomo"]) for name, m in system.result["methods"].items()}
    if not omegas or system.configurations < 2:
        return None
    delivered = system.result["delivered"]
    omegas["delivered, choice included"] = (delivered["in_sample"], delivered["lomo"])
    drawn = figure(WIDTH * 0.75, 0.7 + 0.26 * len(omegas))
    axes = drawn.subplots()
    for y, (name, (in_sample, lomo)) in enumerate(omegas.items()):
        if lomo is not None:
            axes.plot([in_sample, lomo], [y, y], color=GREY, lw=1, zorder=1)
            axes.plot(lomo, y, "o", color=BLUE, ms=6, label="LOMO" if y == 0 else None)
        axes.plot(in_sample, y, "D", mfc="white", mec=ORANGE, mew=1.3, ms=5, label="in-sample" if y == 0 else None)
        if name == delivered["method"]:
            axes.axhspan(y - 0.45, y + 0.45, color="#eef4fb", zorder=0)
    if delivered["ci"]:
        y = len(omegas) - 1
        axes.plot(delivered["ci"], [y, y], "|-", color=BLUE, lw=1, ms=7, zorder=0, label="95 % interval over clips")
    axes.set(yticks=range(len(omegas)), yticklabels=list(omegas), ylim=(len(omegas) - 0.5, -0.5), xlabel="Omega (%)")
    axes.grid(axis="y", visible=False)
    drawn.legend(loc="outside upper left", ncols=3)
    return as_svg(drawn, f"Methods tried for {system.name}")


def correlation(system: System) -> Markup | None:
    """Correlation of the configurations' scores; None without labels or with a single one."""
    complementarity = system.result["complementarity"]
    if complementarity is None or len(complementarity["configurations"]) < 2:
        return None
    names = complementarity["configurations"]
    values = np.array(complementarity["correlation"], float)
    numbers = len(names) <= _NUMBERS_UP_TO
    return matrix(values, names, None, f"Correlation of the configurations of {system.name}", numbers, "{:.2f}", (0, 1))


def pruning(system: System) -> Markup | None:
    """What is left of Omega with fewer score tables; None where it was not measured."""
    pruned = system.result["pruned"]
    if pruned is None or len(pruned["curve"]) < 2:
        return None
    tables, in_sample, lomo = zip(*pruned["curve"], strict=True)
    drawn = figure(WIDTH * 0.5, 2.6)
    axes = drawn.subplots()
    axes.plot(tables, in_sample, "D--", color=ORANGE, mfc="white", ms=4, label="in-sample")
    axes.plot(tables, lomo, "o-", color=BLUE, ms=4, label="LOMO")
    axes.set(xlabel="score tables that are kept", ylabel="Omega (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return as_svg(drawn, f"Omega of {system.name} with fewer tables")
