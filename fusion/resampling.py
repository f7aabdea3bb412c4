"""How sure a gain is: the paired bootstrap of several systems on the same clips."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusion.labelled import LabelledScores
from scoring.bootstrap import REPLICATES, Interval, interval, replicated_cells
from scoring.metrics import harmonic_mean


@dataclass(frozen=True)
class Comparison:
    """The gain in Omega, in per cent, of one system over another.

    gain: on the clips as they are
    clips: interval over clips drawn anew: other recordings of these machines
    machines: interval over machines drawn anew, each with its clips as they are, whose noise is in the differences
        between machines already: other machines
    """

    gain: float
    clips: Interval | None
    machines: Interval | None


def compare(scores: LabelledScores, rng: np.random.Generator) -> tuple[Interval | None, dict[str, Comparison]]:
    """Bootstrap of the first member of `scores`, alone and paired with the others (Efron and Tibshirani 1993).

    Clips are drawn with replacement inside each machine's anomalies and its normals of either domain, the same
    for all members, so that what is hard for all cancels out of a gain.

    Returns
    -------
    the interval of the first member's Omega over clips drawn anew, and a `Comparison` with each other member by name
    """
    cells = scores.cells.values(scores.values)
    omega = harmonic_mean(cells, axis=(-2, -1))
    over_clips = harmonic_mean(replicated_cells(scores.cells, scores.values, REPLICATES, rng), axis=(-2, -1))
    over_machines = _machines_drawn(cells, scores.cells.machines, rng)
    comparisons = {
        name: Comparison(
            float(omega[0] - omega[i]),
            interval(over_clips[0] - over_clips[i]),
            interval(over_machines[0] - over_machines[i]),
        )
        for i, name in enumerate(scores.names[1:], start=1)
    }
    return interval(over_clips[0]), comparisons


def _machines_drawn(
    cells: NDArray[np.float64], machines: tuple[str, ...], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Omega (members, R) of machines drawn anew, from cells (members, 3, G)."""
    names, of_group = np.unique(machines, return_inverse=True)
    times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), REPLICATES)[:, of_group]
    weight = np.where(np.isnan(cells)[:, None], 0, times[:, None])
    with np.errstate(divide="ignore", invalid="ignore"):
        return weight.sum(axis=(-2, -1)) / np.where(weight > 0, weight / cells[:, None], 0).sum(axis=(-2, -1))
