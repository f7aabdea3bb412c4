"""Reference banks and scoring: a branch's embeddings → its score table.

Each machine and section has its own normals; a detector keeps source and target apart. Training clips get
cross-fitted scores, so that calibration and thresholds see scores like those of unheard clips.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scoring.calibration import calibrate
from scoring.detectors import Detector, DetectorSpec
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
    embeddings: (rows, D)
    detector: how embeddings become scores
    metadata: written into the table's schema

    Raises
    ------
    InputError
        If an embedding is not finite, or a machine has fewer than two training clips.
    """
    X = np.asarray(embeddings, np.float64)
    split, domain = rows_of(clips, ["split", "domain"])
    bad = np.flatnonzero(~np.isfinite(X).all(axis=1))
    if len(bad):
        name = f"{clips['machine'][bad[0]]}/{clips['clip'][bad[0]]}"
        raise InputError(f"the embedding of {name} is not finite: training diverged; lower the learning rate")
    score = np.empty(len(X))
    for machine, section, own in groups(clips):
        train, test = np.flatnonzero(own & (split == "train")), np.flatnonzero(own & (split == "test"))
        if len(train) < 2:
            raise InputError(
                f"machine {machine} section {section} has {len(train)} training clips; "
                "at least 2 are needed to score it"
            )
        score[train] = cross_fitted_scores(detector, X[train], domain[train])
        if len(test):
            score[test] = detector.build().fit(X[train], domain[train]).score_samples(X[test])
    return conform(with_scores(clips, score, calibrate(clips, score), metadata))


def cross_fitted_scores(
    detector: DetectorSpec, X: NDArray[np.float64], domain: NDArray[np.object_]
) -> NDArray[np.float64]:
    """Scores (n,) of normals X (n, D), each from a detector that has not seen the clip.

    Folds are spread over each domain in the order given, so that a domain of up to `FOLDS` clips is left
    out one by one. A domain's only clip is compared with the other domain.
    """
    fold = _folds(domain)
    scores = np.empty(len(X))
    for k in np.unique(fold):
        held = fold == k
        fitted: Detector = detector.build().fit(X[~held], domain[~held])
        scores[held] = fitted.score_samples(X[held])
    return scores


def _folds(domain: NDArray[np.object_]) -> NDArray[np.int64]:
    """Fold of each clip, counted on through the domains so that no fold holds everything."""
    order = np.argsort(domain.astype(str), kind="stable")
    fold = np.empty(len(domain), int)
    fold[order] = np.arange(len(domain)) % FOLDS
    return fold
