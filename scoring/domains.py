"""Detectors: distance of an embedding to the normal ones of each domain, for one machine and section.

The domain of a test clip is not known, so a detector gives one distance for each domain. How these become one score is
the same for all of them (`scoring.banks`).
"""

from __future__ import annotations

from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone

Array = NDArray[np.float64]
Domains = NDArray[np.int64]


class Detector(Protocol):
    """What scoring needs of a detector."""

    def fit(self, X: NDArray[np.floating], domain: Domains) -> Self:
        """Learn from embeddings X (n, …) of normal clips, and the domain of each (n,), from 0 on."""
        ...

    def distances(self, X: NDArray[np.floating]) -> Array:
        """Distance of embeddings X (m, …) to each domain's normals: (m, domains)."""
        ...

    def held_out_distances(self) -> Array:
        """`distances` (n, domains) of the clips of `fit`, each as if it had not been among them.

        NaN where that leaves nothing of a domain.
        """
        ...


class DomainBanks:
    """A detector that has an estimator for each domain by itself.

    Parameters
    ----------
    estimator: with scikit-learn's contract, lower `score_samples` being more abnormal; it is cloned for each domain.
        If it knows the scores of its own clips without themselves, it has `held_out_score_samples` for three or more
    """

    def __init__(self, estimator: BaseEstimator) -> None:
        self.estimator = estimator

    def fit(self, X: NDArray[np.floating], domain: Domains) -> Self:
        """See `Detector.fit`."""
        self._X, self._domain = X, domain
        self._fitted = [clone(self.estimator).fit(X[domain == d]) for d in range(domain.max() + 1)]
        return self

    def distances(self, X: NDArray[np.floating]) -> Array:
        """See `Detector.distances`."""
        return np.stack([-estimator.score_samples(X) for estimator in self._fitted], axis=1)

    def held_out_distances(self) -> Array:
        """See `Detector.held_out_distances`."""
        distances = np.empty((len(self._X), len(self._fitted)))
        for d, estimator in enumerate(self._fitted):
            own = self._domain == d
            distances[own, d] = -_held_out_scores(estimator, self._X[own])
            if not own.all():
                distances[~own, d] = -estimator.score_samples(self._X[~own])
        return distances


def _held_out_scores(fitted: BaseEstimator, X: NDArray[np.floating]) -> Array:
    """`score_samples` (n,) of the clips X (n, …) that an estimator is fitted to, each by one fitted to all others."""
    if len(X) < 2:
        return np.full(len(X), np.nan)
    if len(X) > 2 and hasattr(fitted, "held_out_score_samples"):
        return fitted.held_out_score_samples()
    others = (clone(fitted).fit(np.delete(X, i, axis=0)) for i in range(len(X)))
    return np.concatenate([estimator.score_samples(X[i : i + 1]) for i, estimator in enumerate(others)])
