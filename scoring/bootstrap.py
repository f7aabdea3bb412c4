"""Confidence intervals of the official metrics, by drawing the test clips anew."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scoring.metrics import SUMMARY, LabelledCells, harmonic_mean, summarised

BLOCK = 300_000  # scores at once: what they need stays in the processor's cache, and memory is bounded
LEVEL = 0.95
REPLICATES = 1000

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


def bootstrap_intervals(table: pa.Table, replicates: int = REPLICATES, seed: int = 0) -> Intervals:
    """Percentile intervals of the official metrics (Efron and Tibshirani, "An introduction to the bootstrap", 1993).

    Clips are drawn with replacement within each machine's and section's anomalies and its normals of either domain, so
    that each cell keeps its size. The intervals tell how far the choice of test clips moves the figures; machines and
    trained branches are taken as they are. A clip that is alone in its stratum is drawn every time and adds no width.

    Raises InputError if no test row has a known condition.
    """
    cells = LabelledCells.from_table(table)
    scores = table["score"].to_numpy()[None]
    (values,) = replicated_cells(cells, scores, replicates, np.random.default_rng(seed))
    names, summary = summarised(cells.machines, values)
    return Intervals(
        LEVEL,
        replicates,
        interval(harmonic_mean(values, axis=(-2, -1))),
        {name: {key: interval(summary[:, i, m]) for i, key in enumerate(SUMMARY)} for m, name in enumerate(names)},
    )


def interval(values: NDArray[np.float64]) -> Interval | None:
    """Between which the middle `LEVEL` of values (R,) lie; None where they are absent."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return None if np.isnan(low) else (float(low), float(high))


def replicated_cells(
    cells: LabelledCells,
    scores: NDArray[np.float64],
    replicates: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Cells (members, R, 3, G), in per cent, of scores (members, rows) on clips drawn anew, the same for all."""
    strata = cells.strata()
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
