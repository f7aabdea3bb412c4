"""How sure a gain is: the paired bootstrap of several systems on the same clips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusion.labelled import LabelledScores
from scoring.metrics import MAX_FPR, harmonic_mean, roc_area

REPLICATES = 1000
LEVEL = 95
# Scores per block of replicates, which bounds the memory.
BLOCK = 300_000

Interval = tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """The gain in Omega, in per cent, of one system over another.

    gain: on the clips as they are
    clips: interval over clips drawn anew: other recordings of these machines
    machines: interval over machines drawn anew, each with its clips as they are, whose noise is in the differences
        between machines already: other machines
    """

    gain: float
    clips: Interval
    machines: Interval


def compare(
    scores: LabelledScores, against: Mapping[str, int], rng: np.random.Generator
) -> tuple[Interval, dict[str, Comparison]]:
    """Bootstrap of the first member of `scores`, alone and paired with others (Efron and Tibshirani 1993).

    Clips are drawn with replacement inside each machine's anomalies and its normals of either domain, the same
    for all members, so that what is hard for all cancels out of a gain.

    Parameters
    ----------
    scores: members on the same clips
    against: name → which member to compare the first one with

    Returns
    -------
    the interval of the first member's Omega over clips drawn anew, and a `Comparison` for each name
    """
    cells = scores.cells.values(scores.values)
    plain = harmonic_mean(cells, axis=(-2, -1))
    over_clips = harmonic_mean(_replicates(scores, rng), axis=(-2, -1))
    machines = _machines_drawn(cells, scores.cells.machines, rng)
    comparisons = {
        name: Comparison(
            float(plain[0] - plain[i]), _interval(over_clips[0] - over_clips[i]), _interval(machines[0] - machines[i])
        )
        for name, i in against.items()
    }
    return _interval(over_clips[0]), comparisons


def _replicates(scores: LabelledScores, rng: np.random.Generator) -> NDArray[np.float64]:
    """Cells (members, R, 3, G) on clips drawn anew."""
    cells, strata = scores.cells, scores.strata()
    grouped = scores.values[:, cells.rows][:, None, None]
    limits = np.array([1.0, 1.0, MAX_FPR])[:, None]
    step = max(1, BLOCK // (3 * cells.rows.size * len(scores.values)))
    blocks = []
    for start in range(0, REPLICATES, step):
        drawn = np.zeros((min(step, REPLICATES - start), scores.values.shape[1]))
        for rows in strata:
            drawn[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), len(drawn))
        times = drawn[:, cells.rows][:, None]
        blocks.append(100 * roc_area(grouped, cells.positive * times, cells.negative * times, limits))
    return np.concatenate(blocks, axis=1)


def _machines_drawn(
    cells: NDArray[np.float64], machines: tuple[str, ...], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Omega (members, R) of machines drawn anew, from cells (members, 3, G)."""
    names, of_group = np.unique(machines, return_inverse=True)
    times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), REPLICATES)[:, of_group]
    weight = np.where(np.isnan(cells)[:, None], 0, times[:, None])
    with np.errstate(divide="ignore", invalid="ignore"):
        return weight.sum(axis=(-2, -1)) / np.where(weight > 0, weight / cells[:, None], 0).sum(axis=(-2, -1))


def _interval(values: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(values, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)
