"""Decisions: is a clip an anomaly? Thresholds come from training normals only."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import stats

from scoring.table import groups

QUANTILE = 0.9


def gamma_threshold(train: NDArray[np.float64], quantile: float = QUANTILE) -> float:
    """Quantile of the gamma distribution fitted to training scores (n,), as in the challenge's baseline.

    The three parameters (shape, location, scale) are fitted by moments, since fused scores may be negative
    and the likelihood of a free location is unbounded: a Pearson type III distribution, which is the gamma
    shifted, and the normal where the scores have no skew.
    """
    skew = float(np.nan_to_num(stats.skew(train)))
    return float(stats.pearson3.ppf(quantile, skew, loc=train.mean(), scale=train.std()))


def thresholds(table: pa.Table) -> dict[tuple[str, int], float]:
    """Threshold on `score` of each machine and section, from the table's training rows."""
    train, score = table["split"].to_numpy() == "train", table["score"].to_numpy()
    return {(machine, section): gamma_threshold(score[own & train]) for machine, section, own in groups(table)}
