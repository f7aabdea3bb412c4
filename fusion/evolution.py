"""An evolutionary search over the weights of both levels at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy
from numpy.typing import NDArray

from fusion.hierarchy import Parts, Weights, factors
from fusion.labelled import LabelledScores
from fusion.simplex import to_point, to_weights

POPULATION = 40
GENERATIONS = 40


def evolution(
    scores: LabelledScores,
    parts: Parts,
    starts: Sequence[Weights],
    rng: np.random.Generator,
    generations: int = GENERATIONS,
) -> Weights:
    """Weights (K,) of the highest Omega found by differential evolution (Storn and Price 1997).

    A point has a coordinate for each sub-system and for each configuration inside its own, see
    `fusion.simplex`. The first population is random but for the `starts`, weights (K,) each.
    """
    population = rng.random((POPULATION, len(parts) + parts[-1].stop))
    for point, start in zip(population, starts, strict=False):
        over, inside = factors(start, parts)
        point[:] = np.concatenate([to_point(over), *map(to_point, inside)])
    optimum = scipy.optimize.differential_evolution(
        lambda points: -scores.omega(_weights(points.T, parts)),
        [(0, 1)] * population.shape[1],
        init=population,
        maxiter=generations,
        tol=0,
        polish=False,
        updating="deferred",
        vectorized=True,
        seed=rng,
    )
    return _weights(optimum.x[None], parts)[0]


def _weights(points: NDArray[np.float64], parts: Parts) -> NDArray[np.float64]:
    over = to_weights(points[:, : len(parts)])
    inside = points[:, len(parts) :]
    return np.concatenate([over[:, [i]] * to_weights(inside[:, part]) for i, part in enumerate(parts)], axis=1)
