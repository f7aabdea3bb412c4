"""Calibration: the same score means the same on every branch and machine, from training normals only."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scoring.errors import InputError
from scoring.table import groups


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
    train: NDArray[np.float64], scores: NDArray[np.float64], name: str = "scores"
) -> NDArray[np.float64]:
    """Scores in standard deviations above the mean of the cross-fitted training scores.

    Parameters
    ----------
    train: (n,) cross-fitted scores of one machine's and section's normal training clips, n ≥ 2
    scores: (m,) scores of any clips of the same machine and section
    name: what an error calls them

    Raises
    ------
    InputError
        If there are fewer than two training scores, or they do not vary.
    """
    if len(train) < 2:
        raise InputError(f"{name} has {len(train)} training clips; at least 2 are needed to calibrate its scores")
    spread = train.std(ddof=1)
    if not spread > 1e-12 * max(1.0, float(np.abs(train).max())):
        raise InputError(
            f"{name}: all {len(train)} training scores are equal, so there is no scale to calibrate on; "
            "the clips are copies of each other or the branch's embeddings have collapsed"
        )
    return (scores - train.mean()) / spread
