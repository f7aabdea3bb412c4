"""Reference banks and scoring: a branch's embeddings → its score table.

Each machine and section has its own normals, source and target kept apart. A distance to a domain counts
relative to what is usual among that domain's own normals, since ten clips leave larger gaps than 990; the
score is the smallest over the domains. Training clips get cross-fitted scores, so that calibration and
thresholds see scores like those of unheard clips.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scoring.calibration import calibrate
from scoring.detectors import DetectorSpec
from scoring.errors import InputError
from scoring.table import conform, groups, rows_of, with_scores

FOLDS = 10


def score_table(
    clips: pa.Table, embeddings: NDArray[np.floating], detector: DetectorSpec, metadata: Mapping[str, str]
) -> pa.Table:
    """Score every clip against the normals of its machine and section.

    Parameters
    ----------
    clips: rows with machine, section, clip, split, domain and condition; the condition is carried into the
        table and used for nothing
    embeddings: (rows, E), or (rows, bands, E), whose bands are put one after another
    detector: how embeddings become distances
    metadata: written into the table's schema

    Raises
    ------
    InputError
        If an embedding is not finite, or a machine has fewer than two training clips.
    """
    X = np.asarray(embeddings, np.float64).reshape(len(embeddings), -1)
    split, domain = rows_of(clips, ["split", "domain"])
    bad = np.flatnonzero(~np.isfinite(X).all(axis=1))
    if len(bad):
        name = f"{clips['machine'][bad[0]]}/{clips['clip'][bad[0]]}"
        raise InputError(
            f"the embedding of {name} is not finite: the recording's level is absurd, or training diverged "
            "and needs a lower learning rate"
        )
    score = np.empty(len(X))
    for machine, section, own in groups(clips):
        train, test = np.flatnonzero(own & (split == "train")), np.flatnonzero(own & (split == "test"))
        if len(train) < 2:
            raise InputError(
                f"machine {machine} section {section} has {len(train)} training clips; scoring needs at least 2"
            )
        score[train], score[test] = score_group(detector, X[train], domain[train], X[test])
    return conform(with_scores(clips, score, calibrate(clips, score), metadata))


def score_group(
    detector: DetectorSpec, train: NDArray[np.float64], domain: NDArray[np.object_], test: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores of one machine's and section's clips.

    Parameters
    ----------
    train: (n, E) embeddings of normal clips, n ≥ 2, with the domain of each in `domain` (n,)
    test: (m, E) embeddings of other clips

    Returns
    -------
    train_scores: (n,) cross-fitted: no clip is in its own reference
    test_scores: (m,) against all training clips
    """
    names = sorted(set(domain))
    held_out = cross_fitted_distances(detector, train, domain)
    usual = _usual_distances(held_out, np.searchsorted(names, domain.astype(str)))
    train_scores = np.nanmin(held_out / usual, axis=1)
    if not len(test):
        return train_scores, np.empty(0)
    distances = detector.build().fit(train, domain).distances(test)
    return train_scores, np.min(distances / usual, axis=1)


def cross_fitted_distances(
    detector: DetectorSpec, X: NDArray[np.float64], domain: NDArray[np.object_]
) -> NDArray[np.float64]:
    """Distances (n, domains) of normals X (n, E), each from a detector that has not seen the clip.

    Folds are spread over each domain in the order given, so that a domain of up to `FOLDS` clips is left
    out one by one. NaN where that leaves nothing of a domain.
    """
    names = sorted(set(domain))
    fold = _folds(domain)
    distances = np.full((len(X), len(names)), np.nan)
    for k in np.unique(fold):
        held = fold == k
        fitted = detector.build().fit(X[~held], domain[~held])
        columns = np.searchsorted(names, fitted.domains_)
        distances[np.ix_(held, columns)] = fitted.distances(X[held])
    return distances


def _folds(domain: NDArray[np.object_]) -> NDArray[np.int64]:
    """Fold of each clip, counted on through the domains so that no fold holds everything."""
    order = np.argsort(domain.astype(str), kind="stable")
    fold = np.empty(len(domain), int)
    fold[order] = np.arange(len(domain)) % FOLDS
    return fold


def _usual_distances(held_out: NDArray[np.float64], member: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean distance (domains,) of each domain's clips to their own domain.

    A domain of one clip, or of copies of one, tells nothing and takes the others' mean.
    """
    own = [held_out[member == d, d] for d in range(held_out.shape[1])]
    usual = np.array([0.0 if np.isnan(values).all() else np.nanmean(values) for values in own])
    known = usual > 0
    return np.where(known, usual, usual[known].mean() if known.any() else 1.0)
