"""Bayesian optimisation of one level's weights: tree-structured Parzen estimators in hyperopt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from fusion.hierarchy import Weights
from fusion.labelled import LabelledScores
from fusion.simplex import to_point, to_weights

TRIALS = 60
RANDOM_TRIALS = 6  # before the estimators take over; hyperopt's 20 would leave them little of so short a search
PATIENCE = 12
RESTARTS = 3


def tpe(scores: LabelledScores, starts: Sequence[Weights], rng: np.random.Generator) -> Weights:
    """Weights (C,) of the highest Omega found (Bergstra et al. 2011), never below that of the starts.

    A search ends after `PATIENCE` trials without progress; as long as searches find something better, up to
    `RESTARTS` of them begin anew with other random numbers.
    """
    n = len(scores.values)
    if n == 1:
        return np.ones(1)
    omega = scores.omega(np.stack(starts))
    best, best_omega = starts[int(np.argmax(omega))], omega.max()
    for _ in range(RESTARTS):
        found = _search(scores, starts, rng)
        if scores.omega(found) <= best_omega + 1e-9:
            break
        best, best_omega = found, scores.omega(found)
    return best


def _search(scores: LabelledScores, starts: Sequence[Weights], rng: np.random.Generator) -> Weights:
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
        early_stop_fn=no_progress_loss(PATIENCE),
        rstate=rng,
        show_progressbar=False,
        verbose=False,
    )
    return weights(best)
