"""Detectors: distance of an embedding to the normal ones of one machine and section.

The contract is scikit-learn's, except that larger scores are more anomalous: `fit(X, domain)` with one
bank per domain, `score_samples(X)` without one, since a test clip's domain is not known.
"""

from __future__ import annotations

from typing import Annotated, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.linalg import solve_triangular
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors


class Detector(Protocol):
    """What scoring needs of a detector."""

    def fit(self, X: NDArray[np.float64], domain: NDArray[np.object_]) -> Self:
        """Learn from embeddings X (n, D) of normal clips and the domain of each (n,)."""
        ...

    def score_samples(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """Anomaly scores (m,) of embeddings X (m, D); larger = more anomalous."""
        ...


class Mahalanobis:
    """Smallest Mahalanobis distance to the mean of a domain.

    Ten target clips give a mean but no covariance, so the domains share one: that of all clips after
    subtraction of their domain's mean, shrunk as in Ledoit and Wolf, "A well-conditioned estimator for
    large-dimensional covariance matrices", 2004.
    """

    def fit(self, X: NDArray[np.float64], domain: NDArray[np.object_]) -> Self:
        """See `Detector.fit`."""
        names, member = np.unique(domain, return_inverse=True)
        means = np.stack([X[member == d].mean(axis=0) for d in range(len(names))])
        covariance = LedoitWolf(assume_centered=True).fit(X - means[member]).covariance_
        # Only rounding separates a shrunk covariance from a positive definite one; the ridge covers it.
        ridge = 1e-9 * np.trace(covariance) / len(covariance) + np.finfo(float).tiny
        self._factor = np.linalg.cholesky(covariance + ridge * np.eye(len(covariance)))
        self._means = self._whiten(means)
        return self

    def _whiten(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        return solve_triangular(self._factor, X.T, lower=True).T  # type: ignore[no-any-return]

    def score_samples(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `Detector.score_samples`."""
        white = self._whiten(X)
        return np.min([np.linalg.norm(white - mean, axis=1) for mean in self._means], axis=0)


class KNearestNeighbours:
    """Mean cosine distance to the k nearest clips of a domain, the smaller of the domains' values."""

    def __init__(self, k: int = 1) -> None:
        self.k = k

    def fit(self, X: NDArray[np.float64], domain: NDArray[np.object_]) -> Self:
        """See `Detector.fit`. A bank of fewer than k clips uses all of them."""
        self._banks = []
        for name in np.unique(domain):
            bank = X[domain == name]
            k = min(self.k, len(bank))
            self._banks.append(NearestNeighbors(n_neighbors=k, metric="cosine").fit(bank))
        return self

    def score_samples(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `Detector.score_samples`; between 0 and 2."""
        return np.min([bank.kneighbors(X)[0].mean(axis=1) for bank in self._banks], axis=0)


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MahalanobisSpec(_Spec):
    """Mahalanobis distance with a covariance pooled over the domains."""

    name: Literal["mahalanobis"] = "mahalanobis"

    def build(self) -> Detector:
        """An unfitted detector."""
        return Mahalanobis()


class KnnSpec(_Spec):
    """Cosine distance to the k nearest neighbours."""

    name: Literal["knn"] = "knn"
    k: int = Field(1, ge=1)

    def build(self) -> Detector:
        """An unfitted detector."""
        return KNearestNeighbours(self.k)


DetectorSpec = Annotated[MahalanobisSpec | KnnSpec, Field(discriminator="name")]
