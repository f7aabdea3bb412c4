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
import scipy
from numpy.typing import NDArray

from fusion.hierarchy import Level, Parts, Weights, choose_weights, factors, uniform_weights
from fusion.labelled import LabelledScores
from fusion.scales import Scale

# Omega in per cent: members that differ by so much differ in weight by a factor e. The strongest regularisation first.
TEMPERATURES = (10.0, 5.0, 2.0, 1.0, 0.5, 0.2, 0.1)
# Share of the uniform weights in what is delivered; the strongest regularisation first.
SHRINKAGES = (0.75, 0.5, 0.25, 0.0)
GREEDY_ROUNDS = 20
TRIALS = 60  # of a search by TPE
RANDOM_TRIALS = 6  # before the estimators take over; hyperopt's 20 would leave them little of so short a search
PATIENCE = 12
BRIEF_PATIENCE = 4  # where a search says only which strength and method to take for a machine, see `Method.brief`
RESTARTS = 3
POPULATION = 40  # of the evolutionary search
GENERATIONS = 40
OPEN = 0.75  # probability of a gate, see `to_weights`

Search = Callable[[LabelledScores, Parts, np.random.Generator], dict[str, Weights]]


@dataclass(frozen=True)
class Method:
    """A way to choose weights, and the scale of scores they apply to.

    brief: a cheaper search in its place where two groups of machines are left out; None for the same. Its weights are
        delivered to nobody and judge no machine in the reported figure: they decide between methods and strengths there
    """

    search: Search
    scale: Scale = "calibrated"
    brief: Search | None = None


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
    return scipy.special.softmax(scores.omega(np.eye(len(scores.values))) / temperature)


def greedy(scores: LabelledScores, rng: np.random.Generator) -> Weights:
    """Ensemble selection with replacement (Caruana et al. 2004, https://doi.org/10.1145/1015330.1015432).

    Each round adds the member whose addition gives the highest Omega; the best of all rounds counts.
    """
    n = len(scores.values)
    counts, best, best_omega = np.zeros(n), np.zeros(n), -np.inf
    for size in range(1, GREEDY_ROUNDS + 1):
        candidates = counts + np.eye(n)
        omega = scores.omega(candidates / size)
        counts = candidates[omega.argmax()]
        if omega.max() > best_omega:
            best, best_omega = counts / size, omega.max()
    return best


# Where searches begin.
STARTS: tuple[Level, ...] = (uniform, best_single, greedy)


def tpe(scores: LabelledScores, rng: np.random.Generator, patience: int = PATIENCE) -> Weights:
    """Weights (C,) of the highest Omega found by tree-structured Parzen estimators (Bergstra et al. 2011).

    They are never worse than the starts. A search ends after `patience` trials without progress; as long as searches
    find something better, up to `RESTARTS` of them begin anew with other random numbers.
    """
    if len(scores.values) == 1:
        return np.ones(1)
    starts = np.stack([start(scores, rng) for start in STARTS])
    omega = scores.omega(starts)
    best, best_omega = starts[omega.argmax()], omega.max()
    for _ in range(RESTARTS):
        found = _tpe_search(scores, starts, rng, patience)
        if scores.omega(found) <= best_omega + 1e-9:
            break
        best, best_omega = found, scores.omega(found)
    return best


def _tpe_search(
    scores: LabelledScores, starts: NDArray[np.float64], rng: np.random.Generator, patience: int
) -> Weights:
    import hyperopt  # which takes a second to load
    from hyperopt.early_stop import no_progress_loss

    labels = [str(i) for i in range(len(scores.values))]

    def weights(point: dict[str, float]) -> Weights:
        return to_weights(np.array([point[label] for label in labels]))

    best = hyperopt.fmin(
        lambda point: -float(scores.omega(weights(point))),
        {label: hyperopt.hp.uniform(label, 0, 1) for label in labels},
        algo=partial(hyperopt.tpe.suggest, n_startup_jobs=RANDOM_TRIALS, verbose=False),
        max_evals=TRIALS,
        points_to_evaluate=[dict(zip(labels, to_point(start).tolist(), strict=True)) for start in starts],
        early_stop_fn=no_progress_loss(patience),
        rstate=rng,
        show_progressbar=False,
        verbose=False,
    )
    return weights(best)


def evolution(scores: LabelledScores, parts: Parts, rng: np.random.Generator) -> Weights:
    """Weights (K,) of the highest Omega found by differential evolution (Storn and Price 1997) on both levels at once.

    A point has a coordinate for each sub-system and for each configuration inside its own. The first population is
    random but for the starts.
    """

    def weights(points: NDArray[np.float64]) -> NDArray[np.float64]:
        over, inside = to_weights(points[:, : len(parts)]), points[:, len(parts) :]
        return np.concatenate([over[:, [i]] * to_weights(inside[:, part]) for i, part in enumerate(parts)], axis=1)

    starts = [choose_weights(scores, parts, rng, level) for level in STARTS]
    population = rng.random((POPULATION, len(parts) + len(scores.values)))
    for point, start in zip(population, starts, strict=False):
        over, inside = factors(start, parts)
        point[:] = np.concatenate([to_point(over), *map(to_point, inside)])
    optimum = scipy.optimize.differential_evolution(
        lambda points: -scores.omega(weights(points.T)),
        [(0, 1)] * population.shape[1],
        init=population,
        maxiter=GENERATIONS,
        tol=0,
        polish=False,
        updating="deferred",
        vectorized=True,
        seed=rng,
    )
    return weights(optimum.x[None])[0]


def to_weights(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights (..., C) of points (..., C) in the unit cube, where searches that know only boxes can move.

    A coordinate above `OPEN` closes its member's gate: the weight is 0. Below, the weight is ∝ −log(u / OPEN). With u
    uniform each gate is open with probability `OPEN`, independently, and the weights of the open members are uniform
    on their simplex, Dirichlet(1): −log of a uniform variable is exponential. Normalised uniforms would not be.
    Where every gate is closed, weights are equal.
    """
    raw = np.maximum(0, -np.log(np.maximum(points, 1e-12) / OPEN))
    total = raw.sum(axis=-1, keepdims=True)
    return np.where(total > 0, raw / np.where(total > 0, total, 1), 1 / points.shape[-1])


def to_point(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """A point (C,) of the cube with these weights (C,)."""
    return np.where(weights > 0, OPEN * np.exp(-len(weights) * weights), (1 + OPEN) / 2)


def plain(level: Level) -> Search:
    """A search on both levels whose result is delivered as it is."""
    return lambda scores, parts, rng: {"": choose_weights(scores, parts, rng, level)}


def _softmax(scores: LabelledScores, parts: Parts, rng: np.random.Generator) -> dict[str, Weights]:
    return {
        f"temperature {t}": choose_weights(scores, parts, rng, partial(softmax, temperature=t)) for t in TEMPERATURES
    }


def _shrunk(search: Callable[[LabelledScores, Parts, np.random.Generator], Weights]) -> Search:
    """A search whose result is then drawn towards uniform weights."""

    def drawn(scores: LabelledScores, parts: Parts, rng: np.random.Generator) -> dict[str, Weights]:
        weights, equal = search(scores, parts, rng), uniform_weights(parts)
        return {f"shrinkage {s}": (1 - s) * weights + s * equal for s in SHRINKAGES}

    return drawn


# From the simplest to the most elaborate: of equals the first is taken.
METHODS: dict[str, Method] = {
    "uniform": Method(plain(uniform)),
    "best_single": Method(plain(best_single)),
    "rank_average": Method(plain(uniform), "rank"),
    "softmax": Method(_softmax),
    "greedy": Method(_shrunk(partial(choose_weights, level=greedy))),
    "tpe": Method(
        _shrunk(partial(choose_weights, level=tpe)),
        brief=_shrunk(partial(choose_weights, level=partial(tpe, patience=BRIEF_PATIENCE))),
    ),
    "evolution": Method(_shrunk(evolution)),
}
