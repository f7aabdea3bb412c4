"""Confidence intervals of the official metrics, by drawing the test clips anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scoring.metrics import SUMMARY, LabelledCells, harmonic_mean, summarised
from scoring.table import rows_of

CHUNK = 50  # replicates at once: what they need stays in the processor's cache

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
    score = table["score"].to_numpy()
    drawn = [replace(cells, positive=p, negative=n).values(score) for p, n in _draws(cells, table, replicates, seed)]
    values = np.concatenate(drawn)
    names, summary = summarised(cells.machines, values)
    tails = [(1 - level) / 2, (1 + level) / 2]
    per_machine = np.quantile(summary, tails, axis=0)
    return Intervals(
        level,
        replicates,
        _interval(np.quantile(harmonic_mean(values, axis=(-2, -1)), tails)),
        {name: {key: _interval(per_machine[:, i, m]) for i, key in enumerate(SUMMARY)} for m, name in enumerate(names)},
    )


def _draws(
    cells: LabelledCells, table: pa.Table, replicates: int, seed: int
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """The cells' weights with clips counted as often as they are drawn: pairs of (chunk, 3, G, N)."""
    rng = np.random.default_rng(seed)
    strata = list(_strata(cells, table))
    for first in range(0, replicates, CHUNK):
        counts = np.zeros((min(CHUNK, replicates - first), 1, *cells.rows.shape))
        for group, members in strata:
            share = np.full(len(members), 1 / len(members))
            counts[:, 0, group, members] = rng.multinomial(len(members), share, size=len(counts))
        yield cells.positive * counts, cells.negative * counts


def _strata(cells: LabelledCells, table: pa.Table) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each group with the places (of N) of its clips of one domain and condition."""
    (domain,) = rows_of(table, ["domain"])
    for weights in (cells.positive, cells.negative):
        for group, rows in enumerate(cells.rows):
            drawn = weights[:, group].any(axis=0)
            for name in sorted(set(domain[rows[drawn]]), key=str):
                yield group, np.flatnonzero(drawn & (domain[rows] == name))


def _interval(bounds: NDArray[np.float64]) -> Interval | None:
    return None if np.isnan(bounds).any() else (float(bounds[0]), float(bounds[1]))
