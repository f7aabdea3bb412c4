"""Mahalanobis distance with a shrunk covariance, and its exact leave-one-out form.

The covariance is that of all clips about the mean of their own group (domain), since ten clips give a mean but no
covariance. With the scatter S = U Λ Uᵀ of n centred clips in E dimensions it is (1 − δ) S / n + δ m I, m being the mean
variance. Leaving clip i of a group of g clips out takes g / (g − 1) c cᵀ from S, c being the clip minus its group's
mean: a rank-one change, whose inverse is known (Sherman and Morrison 1950). The intensity δ depends on the trace of S,
its squared entries and Σ |c|⁴, which follow from the inner products of all clips. Nothing is approximated: refitting
n times gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scoring.errors import InputError
from scoring.neighbours import row_blocks
from scoring.settings import Shrinkage

Array = NDArray[np.float64]

TINY = 1e-24  # of the squared size: what rounding leaves of no variance
LOST = 1e-13  # of the variance: what rounding leaves of it when a clip that had all of it is left out
RIDGE = 1e-9  # of the mean variance: only rounding separates a shrunk covariance from a positive definite one
EXACT = 1e-16  # of a squared distance, which conjugate gradients may be off
_FITTED = ("_unit", "means_", "_basis", "_eigenvalues", "_scale", "_rest")  # what distances need


class Mahalanobis:
    """Distance to the nearest group's mean; scikit-learn's contract: lower scores are more abnormal.

    Parameters
    ----------
    shrinkage: how far the covariance is drawn to a multiple of the identity: as in Ledoit and Wolf, "A
        well-conditioned estimator for large-dimensional covariance matrices" (2004), or a number in (0, 1]
    standardised: whether each dimension is divided by its standard deviation over all clips first: shrinkage draws to a
        multiple of the identity, under which a few dimensions of large variance count for all others
    """

    def __init__(self, shrinkage: Shrinkage = "ledoit_wolf", standardised: bool = False) -> None:
        self.shrinkage = shrinkage
        self.standardised = standardised

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Learn from embeddings X (n, E) of normal clips; y (n,) names the group of each, None means one group.

        Raises InputError if no clip differs from its group's mean: there is no covariance.
        """
        X = np.asarray(X, np.float64)
        n, E = X.shape
        self.groups_, self._member = np.unique(np.zeros(n) if y is None else y, return_inverse=True)
        deviation = X.std(axis=0) if self.standardised else np.zeros(E)
        self._varies = deviation > np.sqrt(TINY) * np.abs(X).max(axis=0)
        self._unit = np.where(self._varies, deviation, 1)
        X = X / self._unit
        self._counts = np.bincount(self._member)
        self.means_ = np.stack([X[self._member == g].mean(axis=0) for g in range(len(self.groups_))])
        self._centred = c = X - self.means_[self._member]
        if n < E:
            self._basis, singular, _ = np.linalg.svd(c.T, full_matrices=False)
            self._eigenvalues = singular**2
        else:
            eigenvalues, self._basis = np.linalg.eigh(c.T @ c)
            self._eigenvalues = np.maximum(eigenvalues, 0)
        self._trace = self._eigenvalues.sum()
        if not self._trace > TINY * n * np.square(self.means_).sum():
            raise InputError("no embedding differs from its group's mean, so there is no covariance")
        moments = self._trace, np.square(self._eigenvalues).sum(), np.square(_inner(c, c)).sum()
        self._scale, self._rest = self._shrunk(n, *moments)
        return self

    def distances(self, X: ArrayLike) -> Array:
        """Distance of embeddings X (m, E) to the mean of each group: (m, groups), in the order of `groups_`."""
        to_means = [np.asarray(X, np.float64) / self._unit - mean for mean in self.means_]
        squared = [_inner(d, self._solved(d, self._scale, self._rest)) for d in to_means]
        return np.sqrt(np.stack(squared, axis=1))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What `distances` needs of the fit, by name."""
        return {name: np.asarray(getattr(self, name)) for name in _FITTED}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Take over the `arrays` of a fitted one."""
        for name in _FITTED:
            setattr(self, name, arrays[name])
        return self

    def score_samples(self, X: ArrayLike) -> Array:
        """Minus the distance (m,) of embeddings X (m, E) to the nearest group: lower = more abnormal."""
        return -self.distances(X).min(axis=1)

    def held_out_distances(self) -> Array:
        """`distances` (n, groups) of the clips of `fit`, each as if it had not been among them.

        NaN where that leaves nothing of a group. Raises InputError if leaving a clip out leaves no covariance.
        """
        n = len(self._centred)
        return np.concatenate([self._held_out(rows) for rows in row_blocks(n, max(self._centred.shape))])

    def _held_out(self, rows: slice) -> Array:
        c, member = self._centred[rows], self._member[rows]
        count = self._counts[member]
        share = count / np.maximum(count - 1, 1)
        precision = self._precision_without(rows)
        scale, rest = self._shrunk(len(self._centred) - 1, *self._moments_without(rows, share, precision))
        solved = self._solved(c, scale, rest)
        removed = scale * share / (1 - scale * share * _inner(c, solved))

        def inverse(d: Array) -> Array:
            """Of the covariance without each clip, times d (b, E) (Sherman and Morrison)."""
            return self._solved(d, scale, rest) + (removed * _inner(solved, d))[:, None] * solved

        squared = np.empty((len(c), len(self.means_)))
        for g, mean in enumerate(self.means_):
            # A clip lies `share` times as far from its group's mean without it as from the mean with it.
            d = np.where(member == g, share, 1)[:, None] * (c + self.means_[member] - mean)
            if self.standardised:
                squared[:, g] = _quadratic_form(d, inverse, rest[:, None] * (1 / precision - 1))
            else:
                squared[:, g] = _inner(d, inverse(d))
        squared[count == 1, member[count == 1]] = np.nan
        # Of two clips that are left the covariance is all but singular, and rounding may give less than nothing.
        return np.sqrt(np.maximum(squared, 0))

    def _precision_without(self, rows: slice) -> Array:
        """1 / variance (b, E) of each dimension without each clip, in units of its variance with all clips.

        A dimension that does not vary any more is not divided, as in `fit`.
        """
        if not self.standardised:
            return np.ones((1, len(self._unit)))
        n = len(self._centred)
        means = self.means_ - self._counts @ self.means_ / n
        from_mean = self._centred[rows] + means[self._member[rows]]
        variance = (n * self._varies - from_mean**2 * n / (n - 1)) / (n - 1)
        return np.where(variance > LOST, 1 / np.maximum(variance, LOST), self._unit**2)

    def _moments_without(self, rows: slice, share: Array, precision: Array) -> tuple[Array, Array, Array]:
        """Trace of the scatter, sum of its squared entries, and Σ |c|⁴, without each clip: (b,) each.

        The other clips of its group move by (share − 1) c.
        """
        centred, member = self._centred, self._member
        c = centred[rows]
        inner = precision * c @ centred.T
        if self.standardised:
            lengths = precision @ np.square(centred).T
            square = _inner(precision @ np.square(centred.T @ centred), precision)
        else:
            lengths, square = np.tile(_inner(centred, centred), (len(c), 1)), np.square(self._eigenvalues).sum()
        own = np.arange(len(c)), np.arange(len(centred))[rows]
        length = lengths[own]
        trace = lengths.sum(axis=1) - share * length
        if not (trace > LOST * self._trace).all():
            raise InputError("all training embeddings but one are equal, so there is no covariance without that one")
        square = square - 2 * share * _inner(inner, inner) + share**2 * length**2
        move = np.equal.outer(member[rows], member) * (share - 1)[:, None]
        moved = lengths + 2 * move * inner + move**2 * length[:, None]
        return trace, square, _inner(moved, moved) - moved[own] ** 2

    def _shrunk(self, n: int, trace: Array, square: Array, fourth: Array) -> tuple[Array, Array]:
        """(1 − δ) / n and δ m with the ridge: the covariance is the one times the scatter, plus the other times I."""
        E = len(self._basis)
        mean = trace / (n * E)
        if self.shrinkage == "ledoit_wolf":
            spread = np.maximum(square / (n * n * E) - mean**2, 0)
            noise = np.clip((fourth / n - square / n**2) / (E * n), 0, spread)
            intensity = np.divide(noise, spread, out=np.ones_like(spread), where=spread > 0)
        else:
            intensity = np.full_like(mean, self.shrinkage)
        return (1 - intensity) / n, intensity * mean + RIDGE * mean

    def _solved(self, d: Array, scale: Array, rest: Array) -> Array:
        """The inverse of `scale` S + `rest` I, which are numbers or (b,), times d (b, E)."""
        scale, rest = np.reshape(scale, (-1, 1)), np.reshape(rest, (-1, 1))
        within = d @ self._basis
        solved = within / (scale * self._eigenvalues + rest) @ self._basis.T
        if len(self._eigenvalues) < d.shape[1]:  # fewer clips than dimensions
            outside = d - within @ self._basis.T
            solved += (outside - outside @ self._basis @ self._basis.T) / rest
        return solved


def _quadratic_form(d: Array, inverse: Callable[[Array], Array], added: Array) -> Array:
    """dᵀ (A + diag(a))⁻¹ d (b,) for each d and a of `added` (b, E), from the inverse of A, which differs by little.

    By conjugate gradients (Hestenes and Stiefel 1952) with A as the preconditioner; `image` is A times the direction.
    """
    residual, direction, image = d, inverse(d), d
    size = first = _inner(d, direction)
    form = np.zeros(len(d))
    for _ in range(2 * d.shape[1]):
        if (size <= EXACT * first).all():
            break
        changed = image + added * direction
        step = np.divide(size, _inner(direction, changed), out=np.zeros_like(size), where=size > 0)
        form += step * size
        residual = residual - step[:, None] * changed
        solved = inverse(residual)
        previous, size = size, _inner(residual, solved)
        kept = np.divide(size, previous, out=np.zeros_like(size), where=previous > 0)[:, None]
        direction, image = solved + kept * direction, residual + kept * image
    return form


def _inner(x: Array, y: Array) -> Array:
    """Inner products (b,) of the rows of two matrices (b, …)."""
    return np.einsum("ij,ij->i", x, y)
