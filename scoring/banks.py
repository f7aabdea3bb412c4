"""Reference banks and scoring: a branch's embeddings → its score table.

Each machine and section has its own normals, source and target kept apart unless the detector pools them. A
distance to a domain counts relative to the distances that are usual among that domain's own normals, since ten clips
leave larger gaps than 990; the score is the smallest over the domains, in standard deviations. Training clips get
cross-fitted scores, so that calibration and thresholds see scores like those of unheard clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scoring.calibration import calibrate
from scoring.detectors import DetectorSpec
from scoring.domains import Arrays, Detector
from scoring.errors import InputError
from scoring.table import conform, groups, rows_of, with_scores

Array = NDArray[np.float64]

MIN_CLIPS = 3  # of two clips each is as far from the other: no scale to calibrate on
PRIOR_CLIPS = 10.0
ROUNDING = 1e-13  # of a sum of squares, which the clip that had all of it leaves behind


def score_table(
    clips: pa.Table, embeddings: NDArray[np.floating], detector: DetectorSpec, metadata: Mapping[str, str]
) -> pa.Table:
    """Score every clip against the normals of its machine and section.

    Parameters
    ----------
    clips: rows with machine, section, clip, split, domain and condition. The condition is carried into the table and
        used for nothing, and so is the domain of test clips
    embeddings: (rows, E), or (rows, bands, E), which most detectors see as one vector for each clip
    detector: how embeddings become scores
    metadata: written into the table's schema

    Raises InputError if an embedding is not finite or has not the form that the detector needs, or if a machine and
    section has fewer than three training clips, one of unknown domain, or embeddings or scores that do not vary.
    """
    X = in_form(embeddings, detector)
    _check_finite(clips, X)
    split, domain = rows_of(clips, ["split", "domain"])
    score = np.empty(len(X))
    for machine, section, group in groups(clips):
        train, test = np.flatnonzero(group & (split == "train")), np.flatnonzero(group & (split == "test"))
        try:
            bank = ReferenceBank.fit(detector, X[train], domain[train])
            score[train], score[test] = bank.train_scores, bank.scores(X[test])
        except InputError as error:
            raise InputError(f"machine {machine} section {section}: {error}") from None
    return conform(with_scores(clips, score, calibrate(clips, score), metadata))


def in_form(embeddings: NDArray[np.floating], detector: DetectorSpec) -> NDArray[np.floating]:
    """Embeddings (rows, E) or (rows, bands, E) as a detector takes them: with bands, or as one vector each."""
    X = np.asarray(embeddings)
    if detector.uses_bands and X.ndim != 3:
        raise InputError(
            f"{detector.name} compares frequency bands, but an embedding is one vector for the clip; take a pooling "
            "that keeps the bands, or another detector"
        )
    return X if detector.uses_bands else X.reshape(len(X), -1)


def _check_finite(clips: pa.Table, X: NDArray[np.floating]) -> None:
    bad = np.flatnonzero(~np.isfinite(X.reshape(len(X), -1)).all(axis=1))
    if len(bad):
        name = f"{clips['machine'][bad[0]]}/{clips['clip'][bad[0]]}"
        raise InputError(
            f"the embedding of {name} is not finite: the recording's level is implausible, or training diverged "
            "and needs a lower learning rate"
        )


class ReferenceBank:
    """The n normals of one machine and section as one detector knows them; made by `fit`, or by `restored` from files.

    Parameters
    ----------
    domain: (n,) number of each clip's domain
    held_out: (n, domains) distances of the clips, each as if it had not been among them

    Attributes
    ----------
    train_scores: (n,) cross-fitted: no clip is in its own reference
    """

    def __init__(self, detector: DetectorSpec, fitted: Detector, domain: NDArray[np.int64], held_out: Array) -> None:
        self._spec, self._fitted, self._domain, self._held_out = detector, fitted, domain, held_out
        self.train_scores: Array = _nearest(standardised(held_out, domain, held_out[:0])[0])

    @classmethod
    def fit(cls, detector: DetectorSpec, X: NDArray[np.floating], domain: NDArray[np.object_]) -> Self:
        """Of embeddings X (n, …) of normal clips, with the domain of each (n,).

        Raises InputError if there are too few clips, the domain of one is not known, or embeddings have not the form
        that the detector needs.
        """
        if len(X) < MIN_CLIPS:
            raise InputError(f"{len(X)} training clips; scoring needs at least {MIN_CLIPS}")
        if None in domain:
            raise InputError("the domain of a training clip is not known; name it source or target")
        names = np.full(len(X), "all") if detector.pools_domains else domain.astype(str)
        number = np.unique(names, return_inverse=True)[1]
        fitted = detector.build().fit(in_form(X, detector), number)
        return cls(detector, fitted, number, fitted.held_out_distances())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What `restored` makes a bank of that gives the same scores, by name."""
        return {"domain": self._domain, "held_out": self._held_out, **self._fitted.arrays()}

    @classmethod
    def restored(cls, detector: DetectorSpec, arrays: Arrays) -> Self:
        """The bank whose `arrays` these are; nothing is fitted."""
        fitted = {name: array for name, array in arrays.items() if name not in ("domain", "held_out")}
        return cls(detector, detector.build().restore(fitted), arrays["domain"], arrays["held_out"])

    def scores(self, X: NDArray[np.floating]) -> Array:
        """Scores (m,) of other clips' embeddings X (m, …), against all normals of the bank."""
        if not len(X):
            return np.empty(0)
        distances = self._fitted.distances(in_form(X, self._spec))
        return _nearest(standardised(self._held_out, self._domain, distances)[1])


def standardised(held_out: Array, member: NDArray[np.int64], distances: Array) -> tuple[Array, Array]:
    """Distances to each domain in standard deviations above what is usual among the domain's own normals.

    Mean and variance come from the held-out distances of a domain's clips to their own domain; a training clip's
    own distance has no part in what it is compared with. Ten clips tell a mean well and a variance badly: each
    variance is drawn to that of all domains, which counts as much as ten clips. A domain of one clip tells
    nothing, and takes the mean and the variance of the others.

    Parameters
    ----------
    held_out: (n, domains) of training clips; NaN where a clip's domain is empty without it
    member: (n,) the column of each clip's own domain
    distances: (m, domains) of other clips
    """
    own_distance = held_out[np.arange(len(member)), member]
    measured = ~np.isnan(own_distance)
    centre = own_distance[measured].mean() if measured.any() else 0.0
    one = np.equal.outer(member, np.arange(held_out.shape[1])) & measured[:, None]
    value = np.where(one, (own_distance - centre)[:, None], 0.0)
    sums = np.stack([one, value, value**2])
    total = sums.sum(axis=1)
    rounding = ROUNDING * total[2].sum()
    mean, spread = _usual(total, rounding)
    mean_without, spread_without = _usual(total[:, None] - sums, rounding)
    return (held_out - centre - mean_without) / spread_without, (distances - centre - mean) / spread


def _usual(sums: Array, rounding: float) -> tuple[Array, Array]:
    """Mean and standard deviation (…, domains) from number, sum and sum of squares (3, …, domains) of their distances.

    A sum of squares about the mean that rounding may have left is none; the deviation is 1 where all domains have none.
    """
    count, total, square = sums
    everything = np.maximum(count.sum(axis=-1, keepdims=True), 1)
    mean = np.where(count > 0, total / np.maximum(count, 1), total.sum(axis=-1, keepdims=True) / everything)
    within = square - count * mean**2
    within = np.where(within > rounding, within, 0)
    pooled = within.sum(axis=-1, keepdims=True) / everything
    variance = (within + PRIOR_CLIPS * pooled) / (count + PRIOR_CLIPS)
    return mean, np.sqrt(np.where(variance > 0, variance, 1))


def _nearest(z: Array) -> Array:
    """Minimum (m,) over the domains of z (m, domains)."""
    smallest: Array = np.fmin.reduce(z, axis=1)
    return smallest
