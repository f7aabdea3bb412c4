"""Calibration: the same score means the same on every branch and machine, from training normals only."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scoring.errors import InputError
from scoring.table import TRANSDUCTIVE, groups, metadata_of, with_scores


def calibrate(clips: pa.Table, score: NDArray[np.float64]) -> NDArray[np.float64]:
    """Calibrated scores (rows,): `location_scale` on the training rows of each machine and section.

    Raises
    ------
    InputError
        If a machine and section has fewer than two training rows, or training scores that do not vary.
    """
    train = clips["split"].to_numpy() == "train"
    calibrated = np.empty(len(score))
    for machine, section, own in groups(clips):
        calibrated[own] = location_scale(score[own & train], score[own], f"machine {machine} section {section}")
    return calibrated


def location_scale(
    train: NDArray[np.float64], scores: NDArray[np.float64], name: str = "scores", split: str = "training"
) -> NDArray[np.float64]:
    """Scores in standard deviations above the mean of the cross-fitted training scores.

    Parameters
    ----------
    train: (n,) cross-fitted scores of one machine's and section's normal training clips, n ≥ 2
    scores: (m,) scores of any clips of the same machine and section
    name, split: what an error calls them

    Raises
    ------
    InputError
        If there are fewer than two training scores, or they do not vary.
    """
    if len(train) < 2:
        raise InputError(f"{name} has {len(train)} {split} clips; at least 2 are needed to calibrate its scores")
    spread = train.std(ddof=1)
    if not spread > 1e-12 * max(1.0, float(np.abs(train).max())):
        raise InputError(
            f"{name}: all {len(train)} {split} scores are equal, so there is no scale to calibrate on; "
            "the clips are copies of each other or the branch's embeddings have collapsed"
        )
    return (scores - train.mean()) / spread


def transductive_normalisation(table: pa.Table) -> pa.Table:
    """The table with `calibrated` made from its own test rows: against the task's rules, and marked as such.

    For tables without training rows, which nothing else can put on a common scale. No label is used, but each
    test clip's score then depends on the other test clips. `is_transductive` tells such a table from others, and
    keeps telling it of what is fused from them.

    Parameters
    ----------
    table: a score table; its `calibrated` becomes the score in standard deviations above the mean of the test
        rows of its machine and section

    Raises
    ------
    InputError
        If a machine and section has fewer than two test rows, or test scores that do not vary.
    """
    test, score = table["split"].to_numpy() == "test", table["score"].to_numpy()
    calibrated = np.empty(len(score))
    for machine, section, own in groups(table):
        calibrated[own] = location_scale(score[own & test], score[own], f"machine {machine} section {section}", "test")
    return with_scores(table, score, calibrated, {**metadata_of(table), TRANSDUCTIVE: "true"})
