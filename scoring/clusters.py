"""Detectors that sum the normals up before they compare: k-means and a Gaussian mixture.

Neither has a closed form without a clip; `scoring.crossfit` refits them by folds.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture

from scoring.neighbours import directions
from scoring.settings import Metric

CLIPS_PER_COMPONENT = 10


class KMeansDistance(BaseEstimator):  # type: ignore[misc]  # scikit-learn publishes no types
    """Distance to the nearest of some centres; scikit-learn's contract: lower scores are more abnormal.

    Parameters
    ----------
    clusters: how many centres; as many as there are different embeddings where those are fewer
    metric: `cosine` clusters embeddings of length one
    """

    def __init__(self, clusters: int = 16, metric: Metric = "cosine") -> None:
        self.clusters = clusters
        self.metric = metric

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Find the centres of embeddings X (n, E) of normal clips; y is not used."""
        V = directions(np.asarray(X, np.float64), self.metric)
        self._kmeans = KMeans(min(self.clusters, _different(V)), n_init=3, random_state=0).fit(V)
        return self

    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """Minus the Euclidean distance (m,) of embeddings X (m, E) to the nearest centre: lower = more abnormal."""
        V = directions(np.asarray(X, np.float64), self.metric)
        return -self._kmeans.transform(V).min(axis=1)


class MixtureDensity(BaseEstimator):  # type: ignore[misc]  # scikit-learn publishes no types
    """Log-likelihood of a Gaussian mixture with diagonal covariances; lower scores are more abnormal.

    Parameters
    ----------
    components: at most so many, and no more than one for ten clips or than there are different embeddings
    floor: added to the variances, relative to the mean variance, so that few clips make no narrow peaks
    """

    def __init__(self, components: int = 4, floor: float = 0.1) -> None:
        self.components = components
        self.floor = floor

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Fit the mixture to embeddings X (n, E) of normal clips; y is not used."""
        V = np.asarray(X, np.float64)
        components = max(1, min(self.components, len(V) // CLIPS_PER_COMPONENT, _different(V)))
        floor = max(self.floor * V.var(axis=0).mean(), 1e-12)
        mixture = GaussianMixture(components, covariance_type="diag", reg_covar=floor, tol=1e-2, random_state=0)
        self._mixture = mixture.fit(np.repeat(V, 2, axis=0) if len(V) == 1 else V)  # which takes no lone clip
        return self

    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """Log-likelihood (m,) of embeddings X (m, E)."""
        return self._mixture.score_samples(np.asarray(X, np.float64))


def _different(V: NDArray[np.floating]) -> int:
    """Embeddings (n, E) without their copies."""
    return len(np.unique(V, axis=0))
