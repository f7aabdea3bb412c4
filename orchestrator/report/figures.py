"""The figures of a report, each an SVG element of the page.

Colours are from the palette of Okabe and Ito ("Color universal design", 2008) and differ in lightness too; lines differ
in their dashes, so that a figure can be read in print and by everyone.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup, escape
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from numpy.typing import NDArray

from orchestrator.fuse.result import heaviest
from scoring.decisions import thresholds
from scoring.errors import InputError
from scoring.metrics import MAX_FPR, roc_curve
from scoring.table import groups, rows_of

STYLE: dict[Any, Any] = {  # figures are made and written under these settings
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "figure.labelsize": 9,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: it can be searched, and is small
}
BLUE, ORANGE, GREY, BLACK = "#0072b2", "#d55e00", "#999999", "#222222"

_WIDTH = 10.5  # inches; the width of the page
_NARROW = 3.6  # figures that a telephone shows without scrolling
_BOX = {"facecolor": "white", "edgecolor": "#bbbbbb", "boxstyle": "round,pad=0.3", "linewidth": 0.7}
_BINS = 30
_BEYOND = 0.02  # share of the scores that may lie beyond a histogram, at either end
_DOMAINS = {"source": (BLUE, "-"), "target": (ORANGE, "--"), "all clips": (BLACK, ":")}
_TEST_CLIPS = {
    "normal": ("normal test clips", BLUE, "-"),
    "anomaly": ("anomalies", ORANGE, "--"),
    "unknown": ("test clips of unknown condition", BLACK, "-."),
}


def typeset(value: float | None, form: str = ".2f") -> str:
    """A number with a true minus; a dash for what is missing."""
    return "–" if value is None else format(value, form).replace("-", "−")


def correlations(result: dict[str, Any]) -> list[tuple[str, list[float]]]:
    """Name of each of the heaviest configurations, and its correlation with each of them."""
    alike = result["complementarity"]
    return [*zip(alike["configurations"], alike["correlation"], strict=True)]


def weight_tree(result: dict[str, Any]) -> Markup:
    """Sub-systems and their configurations; a line is as thick as what weighs on it. Right of it, what each adds."""
    marginal = (result["complementarity"] or {}).get("marginal", {}).items()
    adds = {name: typeset(omega, "+.2f") for name, omega in marginal if omega is not None}
    weights: dict[str, dict[str, float]] = result["delivered"]["weights"]
    leaves = heaviest(weights)
    drawn = Figure((_WIDTH, 0.7 + 0.27 * len(leaves)))
    axes = drawn.subplots()
    axes.axis("off")
    axes.set(xlim=(-0.02, 1.75), ylim=(len(leaves) - 0.5, -1.2))
    axes.text(1.33, -0.9, "weight", ha="right", va="center", color=GREY)
    if adds:
        axes.text(1.75, -0.9, "LOMO Omega it adds", ha="right", va="center", color=GREY)
    rows = {s: [i for i, leaf in enumerate(leaves) if leaf[0] == s] for s in weights}
    heights = {subsystem: float(np.mean(i)) for subsystem, i in rows.items() if i}
    root = float(np.mean(list(heights.values())))
    axes.text(0, root, result["system"], ha="left", va="center", weight="bold", bbox=_BOX, zorder=3)
    for subsystem, height in heights.items():
        share = sum(weights[subsystem].values())
        _branch_line(axes, (0.05, root), (0.42, height), share)
        axes.text(0.42, height, f"{subsystem}  {share:.2f}", ha="left", va="center", bbox=_BOX, zorder=3)
    largest = max(leaf[2] for leaf in leaves)
    for i, (subsystem, name, weight) in enumerate(leaves):
        colour = BLACK if weight else GREY
        _branch_line(axes, (0.5, heights[subsystem]), (0.98, i), weight)
        axes.barh(i, 0.25 * weight / largest, 0.5, 1.35, color=BLUE)
        axes.text(1.0, i, name, ha="left", va="center", color=colour)
        axes.text(1.33, i, f"{weight:.3f}", ha="right", va="center", color=colour)
        axes.text(1.75, i, adds.get(f"{subsystem}/{name}", ""), ha="right", va="center", color=BLACK)
    return _as_svg(drawn, f"Weights of {result['system']}")


def _branch_line(axes: Axes, start: tuple[float, float], end: tuple[float, float], weight: float) -> None:
    middle = (start[0] + end[0]) / 2
    path = Path([start, (middle, start[1]), (middle, end[1]), end], [Path.MOVETO, *[Path.CURVE4] * 3])
    colour = BLUE if weight else GREY
    axes.add_patch(PathPatch(path, fill=False, ec=colour, lw=max(0.5, 9 * weight), alpha=0.55, capstyle="butt"))


def roc(table: pa.Table, name: str) -> Markup | None:
    """ROC curves of a system by machine, with the region that pAUC measures; None without labels."""
    split, condition, domain, score = rows_of(table, ["split", "condition", "domain", "score"])
    curves = []
    for title, _, rows in sections(table):
        anomaly, normal = (rows & (split == "test") & (condition == kind) for kind in ("anomaly", "normal"))
        if anomaly.any() and normal.any():
            curves.append((title, anomaly, normal))
    if not curves:
        return None
    drawn, axes = _panels(len(curves), 2.5)
    for panel, (title, anomaly, normal) in zip(axes, curves, strict=True):
        panel.axvspan(0, MAX_FPR, color="#dddddd", lw=0, label=f"pAUC: false alarms up to {MAX_FPR:.0%}")
        panel.plot([0, 1], [0, 1], color=GREY, lw=0.7)
        for clips_of, (colour, dashes) in _DOMAINS.items():
            normals = normal & (domain == clips_of) if clips_of != "all clips" else normal
            if normals.any():
                panel.plot(*roc_curve(score, anomaly, normals), color=colour, ls=dashes, label=clips_of)
        panel.set(title=title, xlim=(-0.01, 1), ylim=(0, 1.01), aspect="equal")
        panel.set(xticks=[0, 0.5, 1], yticks=[0, 0.5, 1], xticklabels=["0", "½", "1"], yticklabels=["0", "½", "1"])
    _share(drawn, axes, "false alarms", "anomalies found")
    return _as_svg(drawn, f"ROC curves of {name} by machine")


def distributions(table: pa.Table, name: str) -> Markup:
    """A system's scores of normal and anomalous clips by machine, with the thresholds if there are training clips."""
    try:
        limits = thresholds(table)
    except InputError:  # tables that were made elsewhere may have none
        limits = {}
    split, score = rows_of(table, ["split", "score"])
    condition = pc.fill_null(table["condition"], "unknown").to_numpy()
    parts = sections(table)
    drawn, axes = _panels(len(parts), 2.1)
    for panel, (title, key, rows) in zip(axes, parts, strict=True):
        low, high = _middle(score[rows])
        if key in limits:  # it is in sight, unless it lies further away than all scores are wide
            low, high = sorted([low, high, np.clip(limits[key], 2 * low - high, 2 * high - low)])[::2]
        edges = np.histogram_bin_edges(score[rows], _BINS, (low, high)).tolist()
        shown = np.clip(score, edges[0], edges[-1])
        train, test = rows & (split == "train"), rows & (split == "test")
        if train.any():
            panel.hist(shown[train], edges, density=True, color="#d0d0d0", label="training clips")
        for kind, (label, colour, dashes) in _TEST_CLIPS.items():
            if (clips := shown[test & (condition == kind)]).size:
                panel.hist(clips, edges, density=True, histtype="step", color=colour, ls=dashes, lw=1.4, label=label)
        if key in limits:
            panel.axvline(np.clip(limits[key], low, high), color=BLACK, lw=1.0, ls=":", label="threshold")
        panel.set(title=title, yticks=[])
    _share(drawn, axes, "score", "density")
    return _as_svg(drawn, f"Scores of {name} by machine")


def _middle(scores: NDArray[np.float64]) -> tuple[float, float]:
    """Between which all scores but a few lie, so that an outlier does not squeeze the others."""
    low, high = np.quantile(scores, _BEYOND, method="higher"), np.quantile(scores, 1 - _BEYOND, method="lower")
    return (float(low), float(high)) if low < high else (float(scores.min()), float(scores.max()))


def sections(table: pa.Table) -> list[tuple[str, tuple[str, int], NDArray[np.bool_]]]:
    """Each machine and section: its title, the two as a key, and the mask of its rows."""
    parts = list(groups(table))
    several = len({section for _, section, _ in parts}) > 1
    return [(f"{m} {section:02d}" if several else m, (m, section), rows) for m, section, rows in parts]


def shade(value: float, low: float, high: float) -> str:
    """CSS of a table's cell, in a colour between those of `low` and `high`, and its text in one that stands out."""
    colour = matplotlib.colormaps["cividis"]((value - low) / ((high - low) or 1))
    # As bright as the eye takes the cell for (ITU-R BT.709); below 0.5 white has the better contrast.
    text = BLACK if np.dot(colour[:3], [0.2126, 0.7152, 0.0722]) >= 0.5 else "white"
    return f"background: {to_hex(colour)}; color: {text}"


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with `count` small axes side by side, four in a row, or five where that fills it."""
    columns = 5 if count in (5, 9, 10) else 4
    rows, used = -(-count // columns), min(columns, count)
    drawn = Figure((_WIDTH * used / columns, rows * height + 0.35))
    axes = list(drawn.subplots(rows, used, squeeze=False).flat)
    for empty in axes[count:]:
        empty.remove()
    return drawn, axes[:count]


def _share(drawn: Figure, panels: Sequence[Axes], x: str, y: str) -> None:
    """Labels of the axes of all panels, and one legend above them, of whatever stands in any."""
    drawn.supxlabel(x)
    drawn.supylabel(y)
    entries: dict[str, Artist] = {}
    for panel in panels:
        handles, labels = panel.get_legend_handles_labels()
        entries = dict(zip(labels, handles, strict=True)) | entries
    drawn.legend(list(entries.values()), list(entries), loc="outside upper left", ncols=len(entries))


def _as_svg(drawn: Figure, label: str) -> Markup:
    """The figure as an SVG element, with a text for who cannot see it; the same figure gives the same text."""
    buffer = io.StringIO()
    # The ids in a figure are hashes of what they name and of this salt: two figures on a page must not share them.
    with matplotlib.rc_context({"svg.hashsalt": label}):
        metadata = {"Date": None, "Creator": None}
        drawn.savefig(buffer, format="svg", bbox_inches="tight", pad_inches=0.05, metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    narrow = ' class="narrow"' if drawn.get_figwidth() < _NARROW else ""
    return Markup(text.replace("<svg", f'<svg{narrow} role="img" aria-label="{escape(label)}"', 1))
