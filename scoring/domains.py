"""Detectors: distance of an embedding to the normal ones of each domain, for one machine and section.

An estimator with scikit-learn's contract knows one bank of normals (`scoring.mahalanobis`, `neighbours`,
`clusters`). Here such estimators become detectors, which keep the domains apart: `distances(X)` gives one column
per domain, since the domain of a test clip is not known, and `held_out_distances()` the same for the training
clips, none of which is in its own reference. How the columns become one score is the same for all detectors
(`scoring.banks`).
"""

from __future__ import annotations

from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from scoring.crossfit import FOLDS, fit_augmented, held_out_scores
from scoring.mahalanobis import Mahalanobis
from scoring.settings import Shrinkage

Array = NDArray[np.float64]
Labels = NDArray[np.object_]


class Detector(Protocol):
    """What scoring needs of a detector."""

    domains_: list[str]
    member_: NDArray[np.int64]  # (n,) which of them each clip of `fit` belongs to

    def fit(self, X: NDArray[np.floating], domain: Labels, attributes: Labels) -> Self:
        """Learn from embeddings X (n, …) of normal clips, and the domain and attributes of each (n,)."""
        ...

    def distances(self, X: NDArray[np.floating]) -> Array:
        """Distance of embeddings X (m, …) to each domain's normals: (m, domains), in the order of `domains_`."""
        ...

    def held_out_distances(self) -> Array:
        """`distances` (n, domains) of the clips of `fit`, none having been in its own reference.

        NaN where that leaves nothing of a domain.
        """
        ...


class MahalanobisDetector:
    """Mahalanobis distance to the nearest mean of each domain.

    Parameters
    ----------
    shrinkage: as in `Mahalanobis`
    covariance: `pooled` over the domains; `domain`: a domain with more clips than dimensions has its own
    means: one for each `domain`, or one for each combination of `attributes` in it
    standardised: whether each dimension is divided by its standard deviation over all clips first: shrinkage draws to a
        multiple of the identity, under which a few dimensions of large variance count for all others
    """

    def __init__(
        self,
        shrinkage: Shrinkage,
        covariance: Literal["pooled", "domain"],
        means: Literal["domain", "attributes"],
        standardised: bool = False,
    ) -> None:
        self.shrinkage = shrinkage
        self.covariance = covariance
        self.means = means
        self.standardised = standardised

    def fit(self, X: NDArray[np.floating], domain: Labels, attributes: Labels) -> Self:
        """See `Detector.fit`."""
        self.domains_, self.member_ = _members(domain)
        self._clips = X, domain, attributes
        if self.standardised:
            deviation = X.std(axis=0, dtype=np.float64)
            self._deviation = np.where(deviation > 0, deviation, 1)
            X = X / self._deviation
        names = attributes if self.means == "attributes" else np.full(len(X), "")
        groups = np.array([f"{d}\0{a}" for d, a in zip(domain, names, strict=True)])
        self._pooled = Mahalanobis(self.shrinkage).fit(X, groups)
        self._own = {}
        for name in self.domains_:
            rows = domain == name
            if self.covariance == "domain" and rows.sum() > X.shape[1]:
                self._own[name] = Mahalanobis(self.shrinkage).fit(X[rows], groups[rows])
        return self

    def distances(self, X: NDArray[np.floating]) -> Array:
        """See `Detector.distances`."""
        if self.standardised:
            X = X / self._deviation
        pooled = self._nearest(self._pooled.distances(X))
        for name, model in self._own.items():
            pooled[:, self.domains_.index(name)] = model.distances(X).min(axis=1)
        return pooled

    def held_out_distances(self) -> Array:
        """See `Detector.held_out_distances`."""
        if self.standardised:  # without a clip all dimensions have other deviations: no rank-one change
            return self._by_folds()
        result = self._nearest(self._pooled.held_out_distances())
        for name, model in self._own.items():
            of_domain = self._clips[1] == name
            column = self.domains_.index(name)
            result[of_domain, column] = _nanmin(model.held_out_distances())
            result[~of_domain, column] = model.distances(self._pooled.X_[~of_domain]).min(axis=1)
        return result

    def _by_folds(self) -> Array:
        """`held_out_distances` by folds of each domain's clips: leave-one-out of a domain of up to `FOLDS` clips."""
        result, X = np.full((len(self.member_), len(self.domains_)), np.nan), self._clips[0]
        fold = np.empty(len(X), np.int64)
        for d in range(len(self.domains_)):
            fold[self.member_ == d] = np.arange((self.member_ == d).sum()) % FOLDS
        for held in (fold == i for i in range(fold.max() + 1)):
            others = MahalanobisDetector(self.shrinkage, self.covariance, self.means, self.standardised)
            others.fit(*(values[~held] for values in self._clips))
            columns = [self.domains_.index(name) for name in others.domains_]
            result[np.ix_(held, columns)] = others.distances(X[held])
        return result

    def _nearest(self, to_groups: Array) -> Array:
        of = np.array([group.partition("\0")[0] for group in self._pooled.groups_])
        return np.stack([_nanmin(to_groups[:, of == name]) for name in self.domains_], axis=1)


def _nanmin(distances: Array) -> Array:
    """Smallest of each row that is not NaN."""
    smallest: Array = np.fmin.reduce(distances, axis=1)
    return smallest


def _members(domain: Labels) -> tuple[list[str], NDArray[np.int64]]:
    names, member = np.unique(domain.astype(str), return_inverse=True)
    return names.tolist(), member


class Banks:
    """An estimator for each domain by itself, or one for all.

    Parameters
    ----------
    estimator: what is cloned for each domain; lower `score_samples` are more abnormal
    pooled: whether source and target clips are in one bank, as if they were of one domain
    smote: synthetic clips are added to a domain until it has so many for each clip of the largest domain
    smote_k: neighbours that a clip is mixed with
    """

    def __init__(self, estimator: BaseEstimator, pooled: bool, smote: float, smote_k: int) -> None:
        self.estimator = estimator
        self.pooled = pooled
        self.smote = smote
        self.smote_k = smote_k

    def fit(self, X: NDArray[np.floating], domain: Labels, attributes: Labels) -> Self:
        """See `Detector.fit`."""
        self.domains_, self.member_ = _members(np.full(len(X), "all", object) if self.pooled else domain)
        self._X = X
        self._rows = [np.flatnonzero(self.member_ == d) for d in range(len(self.domains_))]
        wanted = self.smote * max(map(len, self._rows))
        self._synthetic = [max(0, round(wanted - len(rows))) for rows in self._rows]
        banks = zip(self._rows, self._synthetic, strict=True)
        self._fitted = [fit_augmented(self.estimator, X[rows], count, self.smote_k) for rows, count in banks]
        return self

    def distances(self, X: NDArray[np.floating]) -> Array:
        """See `Detector.distances`."""
        return np.stack([-bank.score_samples(X) for bank in self._fitted], axis=1)

    def held_out_distances(self) -> Array:
        """See `Detector.held_out_distances`."""
        result = np.empty((len(self._X), len(self._rows)))
        for d, (rows, count) in enumerate(zip(self._rows, self._synthetic, strict=True)):
            others = np.setdiff1d(np.arange(len(self._X)), rows)
            if len(others):
                result[others, d] = -self._fitted[d].score_samples(self._X[others])
            result[rows, d] = -held_out_scores(self._fitted[d], self._X[rows], count, self.smote_k)
        return result
