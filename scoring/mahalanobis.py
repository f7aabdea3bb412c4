"""Mahalanobis distance with a shrunk covariance, and its exact leave-one-out form.

The covariance is that of all clips about the mean of their own group (domain, or domain and attributes), since
ten clips give a mean but no covariance. With the scatter S = U Λ Uᵀ of n centred clips in E dimensions it is
(1 − δ) S / n + δ m I, m being the mean variance. Leaving clip i of a group of g clips out takes g / (g − 1) c cᵀ
from S, c being the clip minus its group's mean: a rank-one change, so that the inverse follows from that of a
diagonal matrix (Sherman and Morrison 1950). The intensity δ depends on three moments of the centred clips, and
these are brought down exactly as well. Nothing is approximated: refitting n times gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator

from scoring.errors import InputError
from scoring.settings import Shrinkage

Array = NDArray[np.float64]

BLOCK = 4096  # rows in work at a time
TINY = 1e-24  # of the squared size: what rounding leaves of no variance
LOST = 1e-13  # of the variance: what rounding leaves of it when a clip that had all of it is left out
RIDGE = 1e-9  # of the mean variance: only rounding separates a shrunk covariance from a positive definite one


class Moments(NamedTuple):
    """Of n centred clips c with scatter S = Σ c cᵀ: numbers, or one for each clip that is left out."""

    n: int
    trace: Array | np.float64  # of S
    square: Array | np.float64  # sum of the squared entries of S
    fourth: Array | np.float64  # Σ |c|⁴


class GroupMoments(NamedTuple):
    """Of the centred clips c of one group, in the basis of the scatter: Σ |c|⁴, Σ |c|² c and Σ c cᵀ."""

    fourth: np.float64
    third: Array
    scatter: Array


class Mahalanobis(BaseEstimator):  # type: ignore[misc]  # scikit-learn publishes no types
    """Distance to the nearest group's mean; scikit-learn's contract: lower scores are more abnormal.

    Parameters
    ----------
    shrinkage: how far the covariance is drawn to a multiple of the identity: as in Ledoit and Wolf, "A
        well-conditioned estimator for large-dimensional covariance matrices" (2004), as in Chen et al.,
        "Shrinkage algorithms for MMSE covariance estimation" (2010, OAS), or a number in (0, 1]
    """

    def __init__(self, shrinkage: Shrinkage = "ledoit_wolf") -> None:
        self.shrinkage = shrinkage

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Learn from embeddings X (n, E) of normal clips; y (n,) names the group of each, None means one group.

        Raises
        ------
        InputError
            If no clip differs from its group's mean: there is no covariance.
        """
        self.X_ = np.asarray(X)
        self.groups_, self._member = np.unique(np.zeros(len(self.X_)) if y is None else y, return_inverse=True)
        self._counts = np.bincount(self._member)
        self.means_ = self._sums() / self._counts[:, None]
        self._eigenvalues, self._basis, fourth = self._decomposed()
        if not self._eigenvalues.sum() > TINY * len(self.X_) * np.square(self.means_).sum():
            raise InputError("no embedding differs from its group's mean, so there is no covariance")
        eigenvalues = self._eigenvalues
        self._moments = Moments(len(self.X_), eigenvalues.sum(), np.square(eigenvalues).sum(), fourth)
        scale, rest = self._shrunk(self._moments)
        self._variance, self._rest = scale * eigenvalues + rest, rest
        return self

    @property
    def covariance_(self) -> Array:
        """The shrunk covariance (E, E)."""
        return self._rest * np.eye(len(self._basis)) + (self._basis * (self._variance - self._rest)) @ self._basis.T

    def distances(self, X: ArrayLike) -> Array:
        """Distance of embeddings X (m, E) to the mean of each group: (m, groups), in the order of `groups_`."""
        X = np.asarray(X)
        white = self._basis / np.sqrt(self._variance)
        squared = np.empty((len(X), len(self.means_)))
        for rows in _blocks(len(X)):
            block = np.asarray(X[rows], np.float64)
            z = block @ white
            for g, mean in enumerate(self.means_):
                squared[rows, g] = _squares(z - mean @ white)
                if self._is_partial:
                    squared[rows, g] += self._outside(block - mean) / self._rest
        return np.sqrt(squared)

    def score_samples(self, X: ArrayLike) -> Array:
        """Minus the distance (m,) of embeddings X (m, E) to the nearest group: lower = more abnormal."""
        return -self.distances(X).min(axis=1)

    def held_out_distances(self) -> Array:
        """`distances` (n, groups) of the clips of `fit`, each as if it had not been among them.

        NaN where that leaves nothing of a group.

        Raises
        ------
        InputError
            If leaving a clip out leaves no covariance.
        """
        by_group = [self._moments_of(g) for g in range(len(self._counts))]
        return np.concatenate([self._held_out(rows, by_group) for rows in _blocks(len(self.X_))])

    def _held_out(self, rows: slice, by_group: Sequence[GroupMoments]) -> Array:
        member = self._member[rows]
        count = self._counts[member]
        share = np.where(count > 1, count / np.maximum(count - 1, 1), 0.0)
        c = self._centred(rows) @ self._basis
        moments = self._without(c, member, share, by_group)
        if not (moments.trace > LOST * self._moments.trace).all():
            raise InputError("all training embeddings but one are equal, so there is no covariance without that one")
        scale, rest = self._shrunk(moments)
        variance = np.multiply.outer(scale, self._eigenvalues) + rest[:, None]
        weighted = c / variance
        inner = np.einsum("ij,ij->i", c, weighted)
        removed = scale * share / (1 - scale * share * inner)
        squared = np.empty((len(c), len(self.means_)))
        for g, mean in enumerate(self.means_):
            difference = np.asarray(self.X_[rows], np.float64) - mean
            z = difference @ self._basis
            squared[:, g] = np.sum(z**2 / variance, axis=1) + removed * np.einsum("ij,ij->i", weighted, z) ** 2
            if self._is_partial:
                squared[:, g] += self._outside(difference) / rest
        # A clip lies `share` times as far from its group's mean without it as from the mean with it.
        squared[np.arange(len(c)), member] = np.where(share > 0, share**2 * (inner + removed * inner**2), np.nan)
        return np.sqrt(squared)

    def _without(self, c: Array, member: NDArray[np.int64], share: Array, by_group: Sequence[GroupMoments]) -> Moments:
        """The moments without each clip c (b, r): the others of its group move by h = (share − 1) c."""
        length = _squares(c)
        trace = self._moments.trace - share * length
        square = self._moments.square - 2 * share * (c**2 @ self._eigenvalues) + share**2 * length**2
        fourth = np.full(len(c), self._moments.fourth)
        for g, of in enumerate(by_group):
            rows = (member == g) & (share > 0)
            h, s, clips = (
                (share[rows, None] - 1) * c[rows],
                (share[rows] - 1) ** 2 * length[rows],
                self._counts[g],
            )
            moved = of.fourth + 4 * np.einsum("ij,ij->i", h @ of.scatter, h) + clips * s**2
            moved += 4 * h @ of.third + 2 * s * np.trace(of.scatter)
            fourth[rows] += moved - of.fourth - share[rows] ** 4 * length[rows] ** 2
        return Moments(self._moments.n - 1, trace, square, fourth)

    def _shrunk(self, moments: Moments) -> tuple[Array, Array]:
        """(1 − δ) / n and δ m with the ridge: the covariance is the one times the scatter, plus the other times I."""
        n, trace, square, fourth = moments
        E = self.X_.shape[1]
        mean = trace / (n * E)
        intensity: Array = np.asarray(0.0 if isinstance(self.shrinkage, str) else self.shrinkage)
        spread = np.maximum(square / (n * n * E) - mean**2, 0)
        if E > 1 and self.shrinkage == "ledoit_wolf":
            noise = np.clip((fourth / n - square / n**2) / (E * n), 0, spread)
            intensity = np.divide(noise, spread, out=np.zeros_like(spread), where=spread > 0)
        elif E > 1 and self.shrinkage == "oas":
            alpha = square / (n * E) ** 2
            intensity = np.minimum((alpha + mean**2) / np.maximum((n + 1) * spread / E, np.finfo(float).tiny), 1)
        return (1 - intensity) / n, intensity * mean + RIDGE * mean

    def _sums(self) -> Array:
        """Sum of each group's embeddings: (groups, E)."""
        groups, sums = np.arange(len(self._counts)), np.zeros((len(self._counts), self.X_.shape[1]))
        for rows in _blocks(len(self.X_)):
            members = np.equal.outer(groups, self._member[rows]).astype(np.float64)
            sums += members @ np.asarray(self.X_[rows], np.float64)
        return sums

    def _centred(self, rows: slice | NDArray[np.int64]) -> Array:
        mean = self.means_ if len(self.means_) == 1 else self.means_[self._member[rows]]
        return np.asarray(self.X_[rows], np.float64) - mean

    def _decomposed(self) -> tuple[Array, Array, np.float64]:
        """Eigenvalues (r,) and eigenvectors (E, r) of the scatter, and Σ |c|⁴; r < E with fewer clips than E."""
        n, E = self.X_.shape
        if n < E:
            centred = self._centred(slice(None))
            basis, singular, _ = np.linalg.svd(centred.T, full_matrices=False)
            return singular**2, basis, np.square(_squares(centred)).sum()
        scatter, fourth = np.zeros((E, E)), np.float64(0)
        for rows in _blocks(n):
            centred = self._centred(rows)
            scatter += centred.T @ centred
            fourth += np.square(_squares(centred)).sum()
        eigenvalues, basis = np.linalg.eigh(scatter)
        return np.maximum(eigenvalues, 0), basis, fourth

    @property
    def _is_partial(self) -> bool:
        return self._basis.shape[1] < self._basis.shape[0]

    def _outside(self, difference: Array) -> Array:
        """Squared length (m,) of differences (m, E) outside the span of the eigenvectors."""
        return np.maximum(_squares(difference) - _squares(difference @ self._basis), 0)

    def _moments_of(self, group: int) -> GroupMoments:
        r = len(self._eigenvalues)
        fourth, third, scatter = np.float64(0), np.zeros(r), np.zeros((r, r))
        members = np.flatnonzero(self._member == group)
        for rows in _blocks(len(members)):
            c = self._centred(members[rows]) @ self._basis
            length = _squares(c)
            fourth += np.square(length).sum()
            third += length @ c
            scatter += c.T @ c
        return GroupMoments(fourth, third, scatter)


def _squares(X: Array) -> Array:
    """Squared length of each row."""
    return np.einsum("ij,ij->i", X, X)


def _blocks(n: int) -> Iterator[slice]:
    return (slice(first, min(first + BLOCK, n)) for first in range(0, n, BLOCK))
