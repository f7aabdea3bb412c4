"""Scores of training clips by estimators that have not seen them, and target augmentation that keeps to this."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.neighbors import NearestNeighbors

FOLDS = 10


def smote(X: NDArray[np.floating], count: int, k: int = 2) -> NDArray[np.floating]:
    """Synthetic embeddings (count, …) on the lines between embeddings X (n, …) and their k nearest neighbours.

    Chawla et al., "SMOTE: Synthetic minority over-sampling technique", 2002. Each clip starts as many lines as any
    other, up to one; the same X gives the same rows. A lone clip has no neighbour: no row then.
    """
    if len(X) < 2 or count < 1:
        return X[:0]
    rng = np.random.default_rng(0)
    flat = X.reshape(len(X), -1)
    _, near = NearestNeighbors(n_neighbors=min(k, len(X) - 1)).fit(flat).kneighbors()
    start = np.arange(count) % len(X)
    end = near[start, rng.integers(near.shape[1], size=count)]
    made = flat[start] + rng.random((count, 1)) * (flat[end] - flat[start])
    return made.astype(X.dtype).reshape(count, *X.shape[1:])


def fit_augmented(estimator: BaseEstimator, X: NDArray[np.floating], synthetic: int, k: int) -> BaseEstimator:
    """A clone of the estimator, fitted to embeddings X (n, …) and so many synthetic ones."""
    return clone(estimator).fit(np.concatenate([X, smote(X, synthetic, k)]))


def held_out_scores(fitted: BaseEstimator, X: NDArray[np.floating], synthetic: int, k: int) -> NDArray[np.float64]:
    """`score_samples` (n,) of the clips X (n, …) that an estimator is fitted to, each as if it had not seen the clip.

    Exact leave-one-out where the estimator has a closed form for it; else by clones for ten folds, which is
    leave-one-out again for up to ten clips. Synthetic clips are made anew for each fold, so that none has an end
    in a clip that is left out. NaN for a lone clip.
    """
    n = len(X)
    if n < 2:
        return np.full(n, np.nan)
    if not synthetic and hasattr(fitted, "held_out_score_samples"):
        return fitted.held_out_score_samples()
    scores = np.empty(n)
    fold = np.arange(n) % FOLDS
    for held in (fold == i for i in range(min(n, FOLDS))):
        scores[held] = fit_augmented(fitted, X[~held], synthetic, k).score_samples(X[held])
    return scores
