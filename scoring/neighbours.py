"""Distance to the nearest normals, in blocks, with the density around each of them if wanted.

Cosine and Euclidean distance are one search: 1 − cos is half the squared distance of vectors of length one. With a
weight w and a density v for each clip b of the bank, and a factor α for each query q, w |q − b|² / 2 − α v is minus an
inner product of vectors with three more entries. So one matrix product in single precision finds the neighbours; their
distances are then computed anew in double precision.
"""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.base import BaseEstimator, clone

from scoring.settings import Density, DensityWeight, Metric

Array = NDArray[np.float64]
Rows = NDArray[np.int64]

BLOCK = 4096  # queries, and clips of the bank, that are compared at once
GATHERED = 2**16  # numbers of the bank that are copied at once: what a processor's cache holds
ROUNDING = 1e-14  # of a cosine in double precision, by which a copy seems to be away
SMALL = 1e-12  # a density between copies, or a variance of densities that all are one


class NearestNeighbours(BaseEstimator):  # type: ignore[misc]  # scikit-learn publishes no types
    """Mean distance to the k nearest clips; scikit-learn's contract: lower scores are more abnormal.

    Parameters
    ----------
    k: how many; a bank of fewer clips uses all of them
    metric: `cosine` is 1 − cos, between 0 and 2; an embedding of zeros has no direction and lies at 0.5
    density: what a distance counts relative to: the mean distance of the neighbour to its own `density_k`
        neighbours in the bank, as `ratio` or `difference`, the nearest clip being the one with the smallest result
        (Wilkinghoff et al., "Keeping the balance: Anomaly score calculation for domain generalization", 2025).
        With `euclidean`, squared distances are compared
    density_k: neighbours that tell the density around a clip of the bank, itself not among them
    density_weight: what the density counts in a `difference`; `fitted` makes the distances u of the bank's clips to
        their k nearest others vary least after α times the density v around these is taken away: α = cov(u, v) / var(v)
    """

    def __init__(
        self,
        k: int = 1,
        metric: Metric = "cosine",
        density: Density = "none",
        density_k: int = 4,
        density_weight: DensityWeight = 1.0,
    ) -> None:
        self.k = k
        self.metric = metric
        self.density = density
        self.density_k = density_k
        self.density_weight = density_weight

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Keep embeddings X (n, E) of normal clips as the bank; y is not used."""
        self._bank = np.asarray(X)
        n = len(self._bank)
        # Rounding in single precision is relative to the distance from the origin; any point amid the bank will do.
        self._centre = directions(self._bank[:BLOCK], self.metric).mean(axis=0).astype(np.float32)
        self._weight, self._usual, self._factor = np.ones(n), np.zeros(n), 0.0
        self._around = min(self.density_k, n - 1) if self.density != "none" else 0
        if self._around:
            self._near, self._who = self._search(self._bank, min(self._used + 1, n - 1), _diagonal(n))
            usual = self._near[:, : self._around].mean(axis=1)
            if self.density == "ratio":
                self._weight = 1 / np.maximum(usual, SMALL)
            else:
                self._usual, self._factor = usual, self._fitted_factor(usual)
        return self

    @property
    def _used(self) -> int:
        """Neighbours of a clip of the bank that fitting needs; one more fills the gap when a clip is left out."""
        return max(self.density_k, self.k if self.density_weight == "fitted" else 0)

    def _fitted_factor(self, usual: Array) -> float:
        if self.density_weight != "fitted":
            return self.density_weight
        u, v = self._near[:, : self.k].mean(axis=1), usual[self._who[:, : self.k]].mean(axis=1)
        return float(_slope(_products(u - u.mean(), v - v.mean()).mean(axis=1)))

    def score_samples(self, X: ArrayLike) -> Array:
        """Minus the mean distance (m,) of embeddings X (m, E) to their nearest clips: lower = more abnormal."""
        distance, _ = self._search(np.asarray(X), min(self.k, len(self._bank)))
        return self._score(distance)

    def held_out_score_samples(self) -> Array:
        """`score_samples` (n,) of the clips of `fit`, each as if it had not been in the bank; n ≥ 2.

        Leaving a clip out takes it from the neighbours, and from the density around those that have it near.
        """
        n = len(self._bank)
        k = min(self.k, n - 1)
        if not self._around:
            return self._score(self._search(self._bank, k, _diagonal(n))[0])
        if n < self._used + 2:  # no further neighbour fills the gap
            return np.concatenate([self._refitted_without(i) for i in range(n)])
        usual = self._usual_without()
        factor = self._factors_without(usual) if self.density_weight == "fitted" else np.full(n, self._factor)
        near, rows = self._near[:, : self._around], self._who[:, : self._around].ravel()
        changed = (
            near / np.maximum(usual, SMALL)
            if self.density == "ratio"
            else near - factor[self._who[:, : self._around]] * usual
        )
        columns = np.repeat(np.arange(n), self._around)
        diagonal, _ = _diagonal(n)
        excluded = np.concatenate([diagonal, rows]), np.concatenate([diagonal, columns])
        unchanged, _ = self._search(self._bank, k, excluded, factor)
        rows = np.concatenate([np.repeat(diagonal, k), rows])
        return self._score(_smallest(rows, np.concatenate([unchanged.ravel(), changed.ravel()]), k))

    def _refitted_without(self, i: int) -> Array:
        others = np.delete(self._bank, i, axis=0)
        return NearestNeighbours(**self.get_params()).fit(others).score_samples(self._bank[i : i + 1])

    def _usual_without(self) -> Array:
        """Density (n, density_k) around each clip of the bank without each of the neighbours that it rests on."""
        near = self._near[:, : self._around]
        return (self._near[:, : self._around + 1].sum(axis=1, keepdims=True) - near) / self._around

    def _factors_without(self, usual: Array) -> Array:
        """The fitted weight (n,) of the density without each clip; `usual` as of `_usual_without`.

        It follows from sums over the clips z. Leaving clip i out takes its own summand away and changes those of the
        z that have it among their neighbours, or a neighbour whose density rests on it: few pairs (i, z).
        """
        n, k, around = len(self._bank), self.k, self._around
        z, neighbour, next_one = np.repeat(np.arange(n), k), self._who[:, :k].ravel(), np.repeat(self._who[:, k], k)
        density = sparse.csr_array(
            ((usual - self._usual[:, None]).ravel(), (self._who[:, :around].ravel(), np.repeat(np.arange(n), around))),
            shape=(n, n),
        )
        of_clips = sparse.csr_array((np.full(n * k, 1 / k), (neighbour, z)), shape=(n, n))
        nearer = (self._near[:, [k]] - self._near[:, :k]).ravel() / k
        rests = self._who[next_one, :around] == neighbour[:, None]
        denser = np.where(rests, usual[next_one] - self._usual[next_one, None], 0).sum(axis=1)
        denser = (self._usual[next_one] + denser - self._usual[neighbour]) / k
        # The change of a distance and that of a density, as one complex number for each pair.
        replaced = sparse.csr_array((nearer + 1j * denser, (neighbour, z)), shape=(n, n))
        pairs = (replaced + 1j * (density @ of_clips)).tocoo()
        change = np.where(pairs.row == pairs.col, 0, pairs.data)
        u, v = self._near[:, :k].mean(axis=1), self._usual[self._who[:, :k]].mean(axis=1)
        u, v = u - u.mean(), v - v.mean()
        before, of = _products(u, v), pairs.col
        moved = _products(u[of] + change.real, v[of] + change.imag) - before[:, of]
        moved_sums = np.stack([np.bincount(pairs.row, row, n) for row in moved])
        return _slope((before.sum(axis=1, keepdims=True) - before + moved_sums) / (n - 1))

    def _score(self, distance: Array) -> Array:
        if self.metric == "euclidean" and self.density == "none":
            distance = np.sqrt(2 * distance)
        return -distance.mean(axis=1)

    def _search(
        self,
        Q: NDArray[np.floating],
        k: int,
        excluded: tuple[Rows, Rows] | None = None,
        factor: Array | None = None,
    ) -> tuple[Array, Rows]:
        """Distances (m, k) of the k nearest of the bank, nearest first, and who they are.

        `excluded`: pairs of a query and a clip of the bank that do not count. A distance is infinite where too few
        are left. `factor`: (m,) of the density for each query, if it is not the same for all.
        """
        factor = np.full(len(Q), self._factor) if factor is None else factor
        queries = self._prepared(Q)
        queries[:, -3], queries[:, -2], queries[:, -1] = factor, _half_squares(queries), 1
        closeness = np.full((len(Q), k), -np.inf, np.float32)
        who = np.zeros((len(Q), k), np.int64)
        for first in range(0, len(self._bank), BLOCK):
            clips = slice(first, min(first + BLOCK, len(self._bank)))
            bank = self._weighted(clips)
            for start in range(0, len(Q), BLOCK):
                rows = slice(start, min(start + BLOCK, len(Q)))
                products = queries[rows] @ bank.T
                if excluded is not None:
                    products[_within(excluded, rows, clips)] = -np.inf
                _keep_largest(closeness[rows], who[rows], products, first)
        distance = np.where(np.isfinite(closeness), self._exact(Q, who, factor), np.inf)
        order = np.argsort(distance, axis=1, kind="stable")
        return np.take_along_axis(distance, order, axis=1), np.take_along_axis(who, order, axis=1)

    def _weighted(self, clips: slice) -> NDArray[np.float32]:
        """Clips of the bank such that their products with queries are minus the distances: (clips, E + 3)."""
        bank, weight = self._prepared(self._bank[clips]), self._weight[clips].astype(np.float32)
        bank[:, -1] = -weight * _half_squares(bank)
        bank[:, :-3] *= weight[:, None]
        bank[:, -3], bank[:, -2] = self._usual[clips], -weight
        return bank

    def _prepared(self, X: NDArray[np.floating]) -> NDArray[np.float32]:
        """Centred embeddings (m, E + 3) in single precision with room for three more entries."""
        padded = np.zeros((len(X), X.shape[1] + 3), np.float32)
        for first in range(0, len(X), BLOCK):
            rows = slice(first, first + BLOCK)
            np.subtract(directions(X[rows], self.metric), self._centre, out=padded[rows, :-3], casting="same_kind")
        return padded

    def _exact(self, Q: NDArray[np.floating], who: Rows, factor: Array) -> Array:
        """Distances (m, k) of queries to the given clips of the bank, in double precision."""
        distance = np.empty(who.shape)
        size = max(1, GATHERED // (who.shape[1] * Q.shape[1]))
        for first in range(0, len(Q), size):
            rows = slice(first, first + size)
            queries, bank = Q[rows].astype(np.float64), self._bank[who[rows]].astype(np.float64)
            if self.metric == "euclidean":
                bank -= queries[:, None]
                distance[rows] = np.einsum("ijk,ijk->ij", bank, bank) / 2
            else:  # scaled after the product, as there are fewer products than entries
                distance[rows] = np.matmul(bank, queries[:, :, None])[:, :, 0]
        if self.metric == "cosine":
            of_query, of_bank = _lengths(Q)[:, None], _lengths(self._bank)[who]
            cosine = distance / np.where(of_query * of_bank > 0, of_query * of_bank, 1)
            distance = (of_query > 0) / 2 + (of_bank > 0) / 2 - cosine
            distance[distance < ROUNDING] = 0
        return self._weight[who] * distance - factor[:, None] * self._usual[who]


class BandNeighbours(BaseEstimator):  # type: ignore[misc]  # scikit-learn publishes no types
    """Nearest neighbours of each frequency band by itself: half the cosine distance, over the bands.

    Parameters
    ----------
    k, density, density_k, density_weight: as in `NearestNeighbours`; `fitted` is so in each band
    bands: the clip's distance is the `mean` over its bands, or the `maximum`
    """

    def __init__(
        self,
        k: int = 1,
        density: Density = "none",
        density_k: int = 4,
        density_weight: DensityWeight = 1.0,
        bands: Literal["mean", "maximum"] = "mean",
    ) -> None:
        self.k = k
        self.density = density
        self.density_k = density_k
        self.density_weight = density_weight
        self.bands = bands

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Keep embeddings X (n, bands, E) of normal clips as the banks; y is not used."""
        bank = NearestNeighbours(self.k, "cosine", self.density, self.density_k, self.density_weight)
        self._banks = [clone(bank).fit(band) for band in np.moveaxis(np.asarray(X), 1, 0)]
        return self

    def score_samples(self, X: ArrayLike) -> Array:
        """Minus the distance (m,) of embeddings X (m, bands, E): lower = more abnormal."""
        bands = np.moveaxis(np.asarray(X), 1, 0)
        return self._over_bands([bank.score_samples(band) for bank, band in zip(self._banks, bands, strict=True)])

    def held_out_score_samples(self) -> Array:
        """`score_samples` (n,) of the clips of `fit`, each as if it had not been in the banks; n ≥ 2."""
        return self._over_bands([bank.held_out_score_samples() for bank in self._banks])

    def _over_bands(self, scores: list[Array]) -> Array:
        return (np.mean(scores, axis=0) if self.bands == "mean" else np.min(scores, axis=0)) / 2


def directions(X: NDArray[np.floating], metric: Metric) -> NDArray[np.floating]:
    """Embeddings (…, E), of length one where the metric is the cosine."""
    if metric == "euclidean":
        return X
    length = np.sqrt(np.einsum("...i,...i->...", X, X))[..., None]
    return X / np.where(length > 0, length, 1)


def _lengths(X: NDArray[np.floating]) -> Array:
    """Of embeddings (m, E): (m,) in double precision."""
    return np.sqrt(np.einsum("ij,ij->i", X, X, dtype=np.float64))


def _products(u: Array, v: Array) -> Array:
    """What a covariance needs of u and v (n,): u, v, uv and v²."""
    return np.stack([u, v, u * v, v * v])


def _slope(moments: Array) -> Array:
    """cov(u, v) / var(v) from the means (4, …) of `_products`; 0 where v does not vary."""
    u, v, uv, vv = moments
    variance = vv - v * v
    return np.divide(uv - u * v, variance, out=np.zeros_like(variance), where=variance > SMALL)


def _half_squares(X: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.einsum("ij,ij->i", X, X) / 2


def _diagonal(n: int) -> tuple[Rows, Rows]:
    return np.arange(n), np.arange(n)


def _within(pairs: tuple[Rows, Rows], rows: slice, columns: slice) -> tuple[Rows, Rows]:
    """The pairs of a block, counted from its corner."""
    i, j = pairs[0] - rows.start, pairs[1] - columns.start
    inside = (i >= 0) & (pairs[0] < rows.stop) & (j >= 0) & (pairs[1] < columns.stop)
    return i[inside], j[inside]


def _keep_largest(values: NDArray[np.float32], who: Rows, new: NDArray[np.float32], first: int) -> None:
    """Put those of the new columns, numbered from `first`, that are among a row's k largest in place of others."""
    k = values.shape[1]
    best = new.argmax(axis=1)[:, None] if k == 1 else np.argpartition(new, max(new.shape[1] - k, 0), axis=1)[:, -k:]
    all_values = np.concatenate([values, np.take_along_axis(new, best, axis=1)], axis=1)
    all_who = np.concatenate([who, best + first], axis=1)
    kept = np.argsort(-all_values, axis=1, kind="stable")[:, :k]
    values[:], who[:] = np.take_along_axis(all_values, kept, axis=1), np.take_along_axis(all_who, kept, axis=1)


def _smallest(rows: Rows, values: Array, k: int) -> Array:
    """The k smallest values of each row: (rows, k); every row has as many."""
    order = np.lexsort((values, rows))
    first = np.searchsorted(rows[order], np.arange(rows.max() + 1))
    return values[order][first[:, None] + np.arange(k)]
