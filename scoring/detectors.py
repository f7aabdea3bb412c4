"""Detectors: distance of an embedding to the normal ones of each domain, for one machine and section.

`fit(X, domain)` keeps the domains apart; `distances(X)` gives one column per domain, since the domain of a
test clip is not known. How the columns become one score is the same for all detectors (`scoring.banks`).
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

    domains_: list[str]

    def fit(self, X: NDArray[np.float64], domain: NDArray[np.object_]) -> Self:
        """Learn from embeddings X (n, E) of normal clips and the domain of each (n,)."""
        ...

    def distances(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """Distance of embeddings X (m, E) to each domain's normals: (m, domains), in the order of `domains_`."""
        ...


class Mahalanobis:
    """Mahalanobis distance to the mean of each domain.

    Ten target clips give a mean but no covariance, so the domains share one: that of all clips after
    subtraction of their domain's mean, shrunk as in Ledoit and Wolf, "A well-conditioned estimator for
    large-dimensional covariance matrices", 2004.
    """

    def fit(self, X: NDArray[np.float64], domain: NDArray[np.object_]) -> Self:
        """See `Detector.fit`."""
        self.domains_ = sorted(set(domain))
        means = np.stack([X[domain == name].mean(axis=0) for name in self.domains_])
        centred = X - means[np.searchsorted(self.domains_, domain.astype(str))]
        covariance = LedoitWolf(assume_centered=True).fit(centred).covariance_
        # Only rounding separates a shrunk covariance from a positive definite one; the ridge covers it.
        ridge = 1e-9 * np.trace(covariance) / len(covariance) + np.finfo(float).tiny
        self._factor = np.linalg.cholesky(covariance + ridge * np.eye(len(covariance)))
        self._means = self._whiten(means)
        return self

    def _whiten(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        return solve_triangular(self._factor, X.T, lower=True).T

    def distances(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `Detector.distances`."""
        white = self._whiten(X)
        return np.stack([np.linalg.norm(white - mean, axis=1) for mean in self._means], axis=1)


class KNearestNeighbours:
    """Mean cosine distance to the k nearest clips of each domain."""

    def __init__(self, k: int = 1) -> None:
        self.k = k

    def fit(self, X: NDArray[np.float64], domain: NDArray[np.object_]) -> Self:
        """See `Detector.fit`. A bank of fewer than k clips uses all of them."""
        self.domains_ = sorted(set(domain))
        banks = [X[domain == name] for name in self.domains_]
        self._banks = [NearestNeighbors(n_neighbors=min(self.k, len(b)), metric="cosine").fit(b) for b in banks]
        return self

    def distances(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `Detector.distances`; between 0 and 2."""
        return np.stack([bank.kneighbors(X)[0].mean(axis=1) for bank in self._banks], axis=1)


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
