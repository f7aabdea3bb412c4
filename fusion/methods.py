"""Ways to choose weights from labelled development scores.

A method takes the K configurations, the places of the sub-systems among them and a random generator, and gives
weights (K,) for each strength of its regularisation, under a name that says it. A new one is a function and an
entry in `METHODS`. Most choose on one level, with a function (scores of C members, rng) → weights (C,).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fusion.evolution import evolution
from fusion.hierarchy import Level, Parts, Weights, choose_weights, uniform_weights
from fusion.labelled import LabelledScores
from fusion.scales import CALIBRATED, GENERALISED_MEAN, MINIMUM, RANK, SOFT_MINIMUM
from fusion.tpe import tpe

# Omega in per cent: members that differ by so much differ in weight by a factor e.
TEMPERATURES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
# Share of the uniform weights in what is delivered.
SHRINKAGES = (0.75, 0.5, 0.25, 0.0)
# Standard deviations of normals, in which a soft minimum forgives; powers of a mean, −1 harmonic, 2 quadratic.
SOFTNESSES = (4.0, 2.0, 1.0, 0.5)
POWERS = (2.0, 4.0, -1.0)
ROUNDS = 20
BAGS = 10

Search = Callable[[LabelledScores, Parts, np.random.Generator], dict[str, Weights]]


@dataclass(frozen=True)
class Method:
    """A way to choose weights, and the scale of scores they apply to; its strength is the number of some scales."""

    search: Search
    scale: str = CALIBRATED


def scale_of(method: str, strength: str) -> str:
    """The scale of the scores that a method's weights of some strength apply to; see `fusion.scales`."""
    scale = METHODS[method].scale
    return f"{scale} {strength}" if scale in (SOFT_MINIMUM, GENERALISED_MEAN) else scale


def uniform(scores: LabelledScores, rng: np.random.Generator) -> Weights:
    """The same weight for every member."""
    n = len(scores.values)
    return np.full(n, 1 / n)


def best_single(scores: LabelledScores, rng: np.random.Generator) -> Weights:
    """All weight on the member with the highest Omega."""
    alone = np.eye(len(scores.values))
    return alone[int(np.argmax(scores.omega(alone)))]


def softmax(scores: LabelledScores, rng: np.random.Generator, temperature: float) -> Weights:
    """Weights ∝ exp(Omega / temperature), Omega in per cent."""
    omega = scores.omega(np.eye(len(scores.values)))
    weights = np.exp((omega - omega.max()) / temperature)
    return weights / weights.sum()


def greedy(scores: LabelledScores, rng: np.random.Generator) -> Weights:
    """Ensemble selection with replacement (Caruana et al. 2004, https://doi.org/10.1145/1015330.1015432).

    Each round adds the member whose addition gives the highest Omega; the best of all rounds counts.
    """
    return _select(scores, np.ones((1, len(scores.values)), bool))[0]


def bagged_greedy(scores: LabelledScores, rng: np.random.Generator) -> Weights:
    """The mean of greedy selections from random halves of the members (Caruana et al. 2004)."""
    n = len(scores.values)
    ranks = rng.permuted(np.tile(np.arange(n), (BAGS, 1)), axis=1)
    return _select(scores, ranks < (n + 1) // 2).mean(axis=0)


def _select(scores: LabelledScores, allowed: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Greedy weights (B, C) from each bag's allowed members (B, C), all bags side by side."""
    bags, n = allowed.shape
    counts, best, best_omega = np.zeros((bags, n)), np.zeros((bags, n)), np.full(bags, -np.inf)
    for size in range(1, ROUNDS + 1 if n > 1 else 2):
        candidates = counts[:, None] + np.eye(n)
        omega = np.full((bags, n), -np.inf)
        omega[allowed] = scores.omega(candidates[allowed] / size)
        chosen = (np.arange(bags), omega.argmax(axis=1))
        counts, better = candidates[chosen], omega[chosen] > best_omega
        best[better], best_omega[better] = counts[better] / size, omega[chosen][better]
    return best


def plain(level: Level) -> Search:
    """A search on both levels whose result is delivered as it is."""
    return lambda scores, parts, rng: {"": choose_weights(scores, parts, level, rng)}


def _equal(numbers: tuple[float, ...]) -> Search:
    """Equal weights on both levels for each number of a scale: no label is needed but to choose among them."""
    return lambda scores, parts, rng: {f"{number:g}": uniform_weights(parts) for number in numbers}


def _softmax(scores: LabelledScores, parts: Parts, rng: np.random.Generator) -> dict[str, Weights]:
    return {
        f"temperature {t}": choose_weights(scores, parts, partial(softmax, temperature=t), rng) for t in TEMPERATURES
    }


def _shrunk(level: Level) -> Search:
    """A search on both levels, whose result is then drawn towards uniform weights."""
    return lambda scores, parts, rng: _towards_uniform(choose_weights(scores, parts, level, rng), parts)


def _towards_uniform(weights: Weights, parts: Parts) -> dict[str, Weights]:
    return {f"shrinkage {s}": (1 - s) * weights + s * uniform_weights(parts) for s in SHRINKAGES}


def _evolution(scores: LabelledScores, parts: Parts, rng: np.random.Generator) -> dict[str, Weights]:
    starts = [choose_weights(scores, parts, level, rng) for level in (uniform, best_single, greedy)]
    return _towards_uniform(evolution(scores, parts, starts, rng), parts)


def _tpe(scores: LabelledScores, rng: np.random.Generator) -> Weights:
    return tpe(scores, [level(scores, rng) for level in (uniform, best_single, greedy)], rng)


# From the simplest to the most elaborate: of equals the first is taken.
METHODS: dict[str, Method] = {
    "uniform": Method(plain(uniform)),
    "best_single": Method(plain(best_single)),
    "minimum": Method(plain(uniform), MINIMUM),
    "rank_average": Method(plain(uniform), RANK),
    "soft_minimum": Method(_equal(SOFTNESSES), SOFT_MINIMUM),
    "generalised_mean": Method(_equal(POWERS), GENERALISED_MEAN),
    "softmax": Method(_softmax),
    "greedy": Method(_shrunk(greedy)),
    "bagged_greedy": Method(_shrunk(bagged_greedy)),
    "tpe": Method(_shrunk(_tpe)),
    "evolution": Method(_evolution),
}
