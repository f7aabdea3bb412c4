"""Figures of how a fused system tells normal clips from anomalies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from markupsafe import Markup
from matplotlib.axes import Axes
from numpy.typing import NDArray

from orchestrator.report.collect import System
from orchestrator.report.drawing import BLACK, BLUE, GREY, ORANGE, as_svg, legend, panels
from scoring.metrics import MAX_FPR
from scoring.table import groups, rows_of

_BINS = 30
_TICKS, _TICK_LABELS = [0, 0.5, 1], ["0", "½", "1"]  # short ones, which do not meet those of the next panel


def roc(system: System) -> Markup | None:
    """ROC curves by machine, with the region that pAUC measures; None without labels."""
    if system.fused is None or system.intervals is None:
        return None
    condition, domain, score = rows_of(system.fused, ["condition", "domain", "score"])
    curves = []
    for group in _groups(system.fused):
        anomaly, normal = group.test & (condition == "anomaly"), group.test & (condition == "normal")
        normals = {
            "source": normal & (domain == "source"),
            "target": normal & (domain == "target"),
            "all clips": normal,
        }
        by_domain = {name: _curve(score, anomaly, normal) for name, normal in normals.items() if normal.any()}
        if anomaly.any() and by_domain:
            curves.append((group.title, by_domain))
    if not curves:
        return None
    drawn, axes = panels(len(curves), height=2.5)
    looks = {"source": (BLUE, "-"), "target": (ORANGE, "--"), "all clips": (BLACK, ":")}
    for panel, (title, by_domain) in zip(axes, curves, strict=True):
        panel.axvspan(0, MAX_FPR, color="#dddddd", lw=0, label=f"pAUC: false alarms up to {MAX_FPR:.0%}")
        panel.plot([0, 1], [0, 1], color=GREY, lw=0.7)
        for name, (x, y) in by_domain.items():
            colour, dashes = looks[name]
            panel.plot(x, y, color=colour, ls=dashes, label=name)
        panel.set(title=title, xlim=(-0.01, 1), ylim=(0, 1.01), aspect="equal")
        panel.set(xticks=_TICKS, xticklabels=_TICK_LABELS, yticks=_TICKS, yticklabels=_TICK_LABELS)
    _outer(axes, "false alarms", "anomalies found")
    legend(drawn, axes)
    return as_svg(drawn, f"ROC curves of {system.name} by machine")


def distributions(system: System) -> Markup | None:
    """Scores of normal and anomalous clips by machine, with the thresholds; None if the table is lost."""
    if system.fused is None:
        return None
    condition, score = rows_of(system.fused, ["condition", "score"])
    sections = list(_groups(system.fused))
    drawn, axes = panels(len(sections))
    for panel, group in zip(axes, sections, strict=True):
        edges = np.histogram_bin_edges(score[group.train | group.test], _BINS).tolist()
        if group.train.any():
            panel.hist(score[group.train], edges, density=True, color="#d0d0d0", label="training clips")
        looks = {"normal test clips": (BLUE, "-"), "anomalies": (ORANGE, "--"), "test clips": (BLUE, "-")}
        for label, clips in _test_clips(group.test, condition).items():
            colour, dashes = looks[label]
            panel.hist(score[clips], edges, density=True, histtype="step", color=colour, ls=dashes, lw=1.4, label=label)
        if system.limits is not None:
            panel.axvline(system.limits[group.key], color=BLACK, lw=1.0, ls=":", label="threshold")
        panel.set(title=group.title, yticks=[])
    _outer(axes, "score", "density")
    legend(drawn, axes)
    return as_svg(drawn, f"Scores of {system.name} by machine")


def _curve(
    score: NDArray[np.float64], anomaly: NDArray[np.bool_], normal: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False alarms and hits."""
    from sklearn.metrics import roc_curve  # which takes a second to load

    scores = np.concatenate([score[anomaly], score[normal]])
    x, y, _ = roc_curve(np.arange(len(scores)) < anomaly.sum(), scores)
    return x, y


class _Group(NamedTuple):
    """One machine and section, and which rows are its training and its test clips."""

    title: str
    key: tuple[str, int]
    train: NDArray[np.bool_]
    test: NDArray[np.bool_]


def _groups(table: pa.Table) -> Iterator[_Group]:
    test = rows_of(table, ["split"])[0] == "test"
    sections = list(groups(table))
    several = len({section for _, section, _ in sections}) > 1
    for machine, section, rows in sections:
        title = f"{machine} {section:02d}" if several else machine
        yield _Group(title, (machine, section), rows & ~test, rows & test)


def _test_clips(test: NDArray[np.bool_], condition: NDArray[np.object_]) -> dict[str, NDArray[np.bool_]]:
    """Test clips by condition, or all of them where none is known."""
    by_condition = {"normal test clips": test & (condition == "normal"), "anomalies": test & (condition == "anomaly")}
    by_condition = {label: clips for label, clips in by_condition.items() if clips.any()}
    return by_condition or ({"test clips": test} if test.any() else {})


def _outer(axes: list[Axes], x: str, y: str) -> None:
    """Label the first axes of each row, and all from below."""
    for panel in axes:
        panel.set_xlabel(x)
        position = panel.get_subplotspec()
        assert position is not None
        if position.is_first_col():
            panel.set_ylabel(y)
        else:
            panel.set_yticklabels([])
