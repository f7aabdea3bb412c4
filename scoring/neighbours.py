"""Distance to the nearest normals in each frequency band, with the density around each of them if wanted.

Half the squared distance between vectors is 1 − cos where these are of length one, so both metrics are one. A matrix
holds it between all clips of a bank. Leaving a clip out changes what is usual around the few others that have it
near: their entries are corrected, and the matrix then has, row by row, what refitting without that clip would give.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scoring.settings import Density, DensityWeight, Metric

Array = NDArray[np.float64]
Rows = NDArray[np.int64]

CELLS = 3_000**2  # of a matrix that are in work at a time: a bank of so many clips is one block
ROUNDING = 2e-14  # of a vector's half squared length, by which a copy seems to be away
SMALL = 1e-12  # a density between copies, or a variance of densities that all are one


class NearestNeighbours:
    """Mean distance to the k nearest clips; scikit-learn's contract: lower scores are more abnormal.

    Parameters
    ----------
    k: how many; a bank of fewer clips uses all of them
    metric: `cosine` is 1 − cos, between 0 and 2; an embedding of zeros has no direction and lies at 0.5
    density: what a distance counts relative to: the mean distance of the neighbour to its own `density_k`
        neighbours in the bank, as `ratio` or `difference`, the nearest clip being the one with the smallest result
        (Wilkinghoff et al., "Keeping the balance: Anomaly score calculation for domain generalization", 2025).
        With `euclidean`, halves of squared distances are compared
    density_k: neighbours that tell the density around a clip of the bank, itself not among them
    density_weight: what the density counts in a `difference`; `fitted` makes the distances u of the bank's clips to
        their k nearest others vary least after α times the density v around these is taken away: α = cov(u, v) / var(v)
    bands: each frequency band has neighbours of its own; a clip's distance is their `mean` or `maximum` over the bands
    """

    def __init__(
        self,
        k: int = 1,
        metric: Metric = "cosine",
        density: Density = "none",
        density_k: int = 4,
        density_weight: DensityWeight = 1.0,
        bands: Literal["mean", "maximum"] = "mean",
    ) -> None:
        self.k = k
        self.metric = metric
        self.density = density
        self.density_k = density_k
        self.density_weight = density_weight
        self.bands = bands

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Keep embeddings X (n, E) or (n, bands, E) of normal clips as the bank; y is not used."""
        self._bands = [_Band(self, band) for band in _bands_of(X)]
        return self

    def score_samples(self, X: ArrayLike) -> Array:
        """Minus the distance (m,) of embeddings X (m, E) or (m, bands, E): lower = more abnormal."""
        pairs = zip(self._bands, _bands_of(X), strict=True)
        return self._over_bands([band.distances(queries) for band, queries in pairs])

    def held_out_score_samples(self) -> Array:
        """`score_samples` (n,) of the clips of `fit`, each as if it had not been in the bank; n ≥ 3."""
        return self._over_bands([band.held_out_distances() for band in self._bands])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What `score_samples` needs of the fit, by name: embeddings (bands, n, E), densities (bands, n), weights."""
        return {name: np.stack([getattr(band, name) for band in self._bands]) for name in ("X", "density", "weight")}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Take over the `arrays` of a fitted one."""
        parts = zip(arrays["X"], arrays["density"], arrays["weight"], strict=True)
        self._bands = [_Band(self, X, (density, weight)) for X, density, weight in parts]
        return self

    def _over_bands(self, distances: Sequence[Array]) -> Array:
        return -(np.mean(distances, axis=0) if self.bands == "mean" else np.max(distances, axis=0))


class _Band:
    """One band X (n, E) of a bank: who is near whom, and the density around each clip, which may be known already."""

    def __init__(
        self, settings: NearestNeighbours, X: NDArray[np.floating], known: tuple[Array, Array] | None = None
    ) -> None:
        self.settings, self.X, others = settings, X, len(X) - 1
        # Rounding is relative to the distance from here, which is 1 for all where directions are compared.
        self.centre = X.mean(axis=0, dtype=np.float64) if settings.metric == "euclidean" else np.zeros(X.shape[1])
        if known is not None:
            self.density, self.weight = known
            return
        self.density = np.full(len(X), float(settings.density == "ratio"))
        self.weight = np.full(1, 1.0 if settings.density_weight == "fitted" else settings.density_weight)
        if settings.density != "none" and others:
            wanted = min(max(settings.k, settings.density_k) + 1, others)  # one more fills a gap
            found = [_smallest(half_squares, wanted) for _, half_squares in self._among()]
            self.near, self.who = (np.concatenate(parts) for parts in zip(*found, strict=True))
            self.density = self.near[:, : settings.density_k].mean(axis=1)
            if settings.density_weight == "fitted":
                k = min(settings.k, others)
                u, v = self.near[:, :k].mean(axis=1), self.density[self.who[:, :k]].mean(axis=1)
                self.weight = _slope(u[None], v[None])

    def distances(self, Q: NDArray[np.floating]) -> Array:
        """Mean distance (m,) of queries Q (m, E) to their nearest clips."""
        bank, queries, distance = self._centred(self.X), self._centred(Q), np.empty(len(Q))
        for rows in row_blocks(len(Q), len(bank)):
            half_squares = _half_squares(queries[rows], bank)
            distance[rows] = self._mean(half_squares, self.density, self.weight, len(bank))
        return distance

    def held_out_distances(self) -> Array:
        """`distances` (n,) of the clips of the bank, each as if it had not been in it."""
        density, weight, distance = self.density, self.weight, np.empty(len(self.X))
        for rows, half_squares in self._among():
            if self.settings.density != "none":
                density = self._means_without(rows, self.settings.density_k)
                if self.settings.density_weight == "fitted":
                    weight = self._weight_without(rows, density)
            distance[rows] = self._mean(half_squares, density, weight, len(distance) - 1)
        return distance

    def _mean(self, half_squares: Array, density: Array, weight: Array, finite: int) -> Array:
        """Mean (b,) of the k smallest of each row's distances, relative to the density, of which so many are finite."""
        match self.settings.density:
            case "ratio":
                distance = half_squares / np.maximum(density, SMALL)
            case "difference":
                distance = half_squares - weight * density
            case "none":
                distance = np.sqrt(2 * half_squares) if self.settings.metric == "euclidean" else half_squares
        if self.settings.k == 1:
            return np.min(distance, axis=1)  # many times as fast as sorting
        k = min(self.settings.k, finite)
        return np.mean(np.partition(distance, k - 1, axis=1)[:, :k], axis=1)

    def _means_without(self, rows: slice, k: int) -> Array:
        """Mean distance (b, n) of each clip to its k nearest others, without the clip of each row."""
        k = min(k, len(self.X) - 2)
        means = np.tile(self.near[:, :k].mean(axis=1), (rows.stop - rows.start, 1))
        row, clip, place = self._gaps(rows, k)
        means[row, clip] += (self.near[clip, k] - self.near[clip, place]) / k
        return means

    def _weight_without(self, rows: slice, density: Array) -> Array:
        """The fitted weight (b, 1) of the density (b, n), both without the clip of each row."""
        k = min(self.settings.k, len(self.X) - 2)
        v = np.zeros_like(density)
        for i in range(k):
            v += density[:, self.who[:, i]] / k
        row, clip, place = self._gaps(rows, k)
        v[row, clip] += (density[row, self.who[clip, k]] - density[row, self.who[clip, place]]) / k
        return _slope(self._means_without(rows, k), v, _own(rows))

    def _gaps(self, rows: slice, k: int) -> tuple[Rows, Rows, Rows]:
        """Who has the clip of a row among its k nearest: the row, that other clip, and the place among the k (p,)."""
        clip, place = np.nonzero((self.who[:, :k] >= rows.start) & (self.who[:, :k] < rows.stop))
        return self.who[clip, place] - rows.start, clip, place

    def _among(self) -> Iterator[tuple[slice, Array]]:
        """Half squared distances (b, n) between the clips, infinite of each to itself, by blocks of rows."""
        bank = self._centred(self.X)
        for rows in row_blocks(len(bank), len(bank)):
            half_squares = _half_squares(bank[rows], bank)
            half_squares[_own(rows)] = np.inf
            yield rows, half_squares

    def _centred(self, X: NDArray[np.floating]) -> Array:
        return _directions(X, self.settings.metric) - self.centre


def _bands_of(X: ArrayLike) -> NDArray[np.floating]:
    """Embeddings (n, E) or (n, bands, E), one band after the other: (bands, n, E)."""
    X = np.asarray(X)
    return np.moveaxis(X, 1, 0) if X.ndim == 3 else X[None]


def _directions(X: NDArray[np.floating], metric: Metric) -> Array:
    """Embeddings (m, E) in double precision, of length one where the metric is the cosine."""
    vectors: Array = X.astype(np.float64)
    if metric == "cosine":
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors /= np.where(length > 0, length, 1)
    return vectors


def _half_squares(Q: Array, X: Array) -> Array:
    """Half the squared distances (m, n) between vectors Q (m, E) and X (n, E); 0 between copies."""
    of_queries, of_bank = (np.einsum("ij,ij->i", Z, Z) / 2 for Z in (Q, X))
    products: Array = Q @ X.T
    half_squares: Array = np.subtract(of_queries[:, None], products, out=products)
    half_squares += of_bank
    half_squares[half_squares < ROUNDING * of_queries[:, None]] = 0
    return half_squares


def _slope(u: Array, v: Array, left_out: tuple[Rows, Rows] | None = None) -> Array:
    """cov(u, v) / var(v) of each row (b, n) but for what is left out: (b, 1); 0 where v does not vary."""
    u, v, n = u - u.mean(), v - v.mean(), u.shape[1]
    if left_out is not None:
        u[left_out] = v[left_out] = 0
        n -= 1
    mean_u, mean_v = u.sum(axis=1) / n, v.sum(axis=1) / n
    variance = np.einsum("ij,ij->i", v, v) / n - mean_v**2
    covariance = np.einsum("ij,ij->i", u, v) / n - mean_u * mean_v
    return np.divide(covariance, variance, out=np.zeros_like(variance), where=variance > SMALL)[:, None]


def _smallest(values: Array, k: int) -> tuple[Array, Rows]:
    """The k smallest of each row, in order, and their columns: (b, k)."""
    columns = np.argpartition(values, k - 1, axis=1)[:, :k]
    columns = np.take_along_axis(columns, np.take_along_axis(values, columns, axis=1).argsort(axis=1), axis=1)
    return np.take_along_axis(values, columns, axis=1), columns


def _own(rows: slice) -> tuple[Rows, Rows]:
    """Where the rows (b,) of a matrix (n, n) meet their own columns."""
    clips = np.arange(rows.start, rows.stop)
    return clips - rows.start, clips


def row_blocks(m: int, n: int) -> Iterator[slice]:
    """Rows of a matrix (m, n) that are in work at a time."""
    size = max(1, CELLS // n)
    return (slice(first, min(first + size, m)) for first in range(0, m, size))
