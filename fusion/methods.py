"""Ways to choose weights for C members from labelled development scores.

Each is a function (scores, rng) → weights (C,), at least 0 and summing to 1; a new one is a function and an
entry in `METHODS`. The order is from the simplest to the most elaborate: of equals the first is delivered.
"""

from __future__ import annotations

import hyperopt
import numpy as np
from numpy.typing import NDArray

from fusion.hierarchy import Method
from fusion.labelled import LabelledScores

TRIALS = 120


def uniform(scores: LabelledScores, rng: np.random.Generator) -> NDArray[np.float64]:
    """The same weight for every member."""
    n = len(scores.values)
    return np.full(n, 1 / n)


def best_single(scores: LabelledScores, rng: np.random.Generator) -> NDArray[np.float64]:
    """All weight on the member with the highest Omega."""
    vertices = np.eye(len(scores.values))
    return vertices[int(np.argmax(scores.omega(vertices)))]


def tpe(scores: LabelledScores, rng: np.random.Generator) -> NDArray[np.float64]:
    """Bayesian optimisation of Omega: tree-structured Parzen estimators (Bergstra et al. 2011) in hyperopt.

    Members get w_i = −log u_i / Σ −log u_j with u uniform, which is uniform on the simplex (Dirichlet(1));
    normalised uniforms are not. The search starts from equal weights and from each member nearly alone.
    """
    n = len(scores.values)
    if n == 1:
        return np.ones(1)
    space = {str(i): hyperopt.hp.uniform(str(i), 1e-9, 1 - 1e-9) for i in range(n)}
    starts = [{str(i): 0.5 if alone is None or i == alone else 0.98 for i in range(n)} for alone in (None, *range(n))]
    best = hyperopt.fmin(
        lambda point: -float(scores.omega(_on_simplex(point))),
        space,
        algo=hyperopt.tpe.suggest,
        max_evals=TRIALS,
        points_to_evaluate=starts,
        rstate=rng,
        show_progressbar=False,
        verbose=False,
    )
    return _on_simplex(best)


def _on_simplex(point: dict[str, float]) -> NDArray[np.float64]:
    exponential = -np.log([point[str(i)] for i in range(len(point))])
    return exponential / exponential.sum()


METHODS: dict[str, Method] = {"uniform": uniform, "best_single": best_single, "tpe": tpe}
