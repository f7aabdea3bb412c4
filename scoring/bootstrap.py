"""Confidence intervals of the official metrics, by drawing the test clips anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scoring.metrics import SUMMARY, LabelledCells, harmonic_mean, summarised
from scoring.table import rows_of

BLOCK = 300_000  # scores at once: what they need stays in the processor's cache, and memory is bounded

Interval = tuple[float, float]


@dataclass(frozen=True)
class Intervals:
    """Intervals in per cent; None where the value is absent.

    level: the share of intervals that cover the true value, if clips were drawn from the machines at random
    machines: machine → the name of each value in `MachineMetrics` → interval
    """

    level: float
    replicates: int
    omega: Interval | None
    machines: dict[str, dict[str, Interval | None]]

    def as_dict(self) -> dict[str, Any]:
        """The form in which intervals are printed as JSON."""
        return asdict(self)


def bootstrap_intervals(table: pa.Table, replicates: int = 1000, level: float = 0.95, seed: int = 0) -> Intervals:
    """Percentile intervals of the official metrics (Efron and Tibshirani, "An introduction to the bootstrap", 1993).

    Clips are drawn with replacement within machine, section, domain and condition, so that each cell keeps its
    size. The intervals tell how far the choice of test clips moves the figures; machines and trained branches are
    taken as they are. A clip that is alone in its stratum is drawn every time and adds no width.

    Raises
    ------
    InputError
        If no test row has a known condition.
    """
    cells = LabelledCells.from_table(table)
    scores = table["score"].to_numpy()[None]
    (values,) = replicated_cells(cells, scores, _strata(cells, table), replicates, np.random.default_rng(seed))
    names, summary = summarised(cells.machines, values)
    tails = [(1 - level) / 2, (1 + level) / 2]
    per_machine = np.quantile(summary, tails, axis=0)
    return Intervals(
        level,
        replicates,
        _interval(np.quantile(harmonic_mean(values, axis=(-2, -1)), tails)),
        {name: {key: _interval(per_machine[:, i, m]) for i, key in enumerate(SUMMARY)} for m, name in enumerate(names)},
    )


def replicated_cells(
    cells: LabelledCells,
    scores: NDArray[np.float64],
    strata: Sequence[NDArray[np.int64]],
    replicates: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Cells (members, R, 3, G), in per cent, of scores (members, rows) on clips drawn anew, the same for all members.

    strata: rows within which clips are drawn with replacement
    """
    step = max(1, BLOCK // (3 * cells.rows.size * len(scores)))
    blocks = []
    for first in range(0, replicates, step):
        counts = np.zeros((min(step, replicates - first), scores.shape[1]))
        for rows in strata:
            counts[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), len(counts))
        times = counts[:, cells.rows][:, None]
        drawn = replace(cells, positive=cells.positive * times, negative=cells.negative * times)
        blocks.append(drawn.values(scores[:, None]))
    return np.concatenate(blocks, axis=1)


def _strata(cells: LabelledCells, table: pa.Table) -> list[NDArray[np.int64]]:
    """Rows of each group's clips of one domain and condition."""
    (domain,) = rows_of(table, ["domain"])
    strata = []
    for weights in (cells.positive, cells.negative):
        for group, rows in enumerate(cells.rows):
            members = np.unique(rows[weights[:, group].any(axis=0)])
            strata += [members[domain[members] == name] for name in sorted(set(domain[members]), key=str)]
    return strata


def _interval(bounds: NDArray[np.float64]) -> Interval | None:
    return None if np.isnan(bounds).any() else (float(bounds[0]), float(bounds[1]))
