"""Calibration: the same score means the same on every branch and machine, from training normals only.

Each method turns the scores of one machine and section into standard normal deviates: a normal clip exceeds 1.28
about one time in ten, whatever the detector. They differ in what they take the distribution of the normals' scores to
be; docs/scoring.md has what was measured with each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pyarrow as pa
import scipy
from numpy.typing import NDArray
from scipy.special import ndtri, ndtri_exp

from scoring.errors import InputError
from scoring.table import TRANSDUCTIVE, groups, metadata_of, with_scores

Array = NDArray[np.float64]
Method = Literal["location_scale", "tail", "gamma"]

TAIL = 0.1  # share of the training scores that tells how a tail falls off


def calibrate(clips: pa.Table, score: Array, method: Method = "location_scale") -> Array:
    """Calibrated scores (rows,), from the training rows of each machine and section.

    Raises
    ------
    InputError
        If a machine and section has fewer than two training rows, or training scores that do not vary.
    """
    train = clips["split"].to_numpy() == "train"
    calibrated = np.empty(len(score))
    for machine, section, group in groups(clips):
        name = f"machine {machine} section {section}"
        check_varied(score[group & train], name)
        calibrated[group] = METHODS[method](score[group & train], score[group])
    return calibrated


def recalibrate(table: pa.Table) -> tuple[Array, list[str]]:
    """Calibrated scores (rows,) that follow from a table's scores, and the machines whose own ones do not.

    Scores that were changed by hand leave the old `calibrated` beside them. The table's method is the one that gives
    the calibrated scores of most of its machines and sections; `location_scale` if it has none.

    Raises
    ------
    InputError
        As `calibrate`.
    """
    score, stored = (table[column].to_numpy().astype(float) for column in ("score", "calibrated"))
    if np.isnan(stored).any():
        return calibrate(table, score), []
    stale: dict[Method, list[str]] = {}
    for method in METHODS:
        fresh = calibrate(table, score, method)
        stale[method] = [
            machine for machine, _, group in groups(table) if not np.allclose(fresh[group], stored[group], 1e-6, 1e-6)
        ]
        if not stale[method]:
            return stored, []
    method = min(stale, key=lambda method: len(stale[method]))
    return calibrate(table, score, method), sorted(set(stale[method]))


def check_varied(train: Array, name: str, split: str = "training") -> None:
    """Raise `InputError` if scores (n,) tell no scale: fewer than two, or all equal."""
    if len(train) < 2:
        raise InputError(f"{name} has {len(train)} {split} clips; at least 2 are needed for a scale of its scores")
    if not train.std() > 1e-12 * max(1.0, float(np.abs(train).max())):
        if np.ptp(train) > 1e-15 * np.abs(train).max():
            problem = f"the {split} scores, about {train.mean():.3g}, vary by only {np.ptp(train):.1g}"
            remedy = "subtract an offset or multiply them, so that they vary by about 1"
        else:
            problem, remedy = f"all {len(train)} {split} scores are equal", "the clips are copies of each other"
        raise InputError(
            f"{name}: {problem}, so they have no scale; {remedy}, or the branch's embeddings have collapsed"
        )


def location_scale(train: Array, scores: Array) -> Array:
    """Scores (m,) in standard deviations above the mean of the training scores (n,).

    Right if the normals' scores have the normal distribution; the method with the least to estimate.
    """
    return (scores - train.mean()) / train.std(ddof=1)


def gamma(train: Array, scores: Array) -> Array:
    """Normal deviates (m,) of scores under the gamma distribution, shifted, of the training scores (n,).

    Fitted by three moments and made normal by a cube root (Wilson and Hilferty, "The distribution of chi-square",
    1931), which is finite on both sides of the gamma's bound and keeps the order.
    """
    z = location_scale(train, scores)
    skew = float(np.clip(scipy.stats.skew(train, bias=len(train) < 3), -2, 2))
    if abs(skew) < 1e-6:
        return z
    return 6 / skew * (np.cbrt(1 + skew * z / 2) - 1 + skew**2 / 36)


def tail(train: Array, scores: Array) -> Array:
    """Normal deviates (m,) of the share of training scores (n,) that lie below each score.

    Assumes nothing of the middle, where shares are interpolated between the training scores. Beyond the outer tenth
    at each end (more of few clips) the distribution falls off exponentially, at the rate of the training scores out
    there (peaks over a threshold; Pickands, "Statistical inference using extreme order statistics", 1975, with
    shape 0), so that far anomalies keep their order. Equal training scores share their mean rank.
    """
    upper, above, width_above = _tail_of(train)
    lower, below, width_below = _tail_of(-train)
    values, counts = np.unique(train, return_counts=True)
    rank = (np.cumsum(counts) - counts / 2) / len(train)
    middle = (values > -lower) & (values < upper)
    knots = np.concatenate([[-lower], values[middle], [upper]])
    shares = np.concatenate([[below], rank[middle], [1 - above]])
    quantiles = np.interp(scores, knots, ndtri(shares))
    high, low = scores > upper, scores < -lower
    quantiles[high] = -ndtri_exp(np.log(above) - (scores[high] - upper) / width_above)
    quantiles[low] = ndtri_exp(np.log(below) - (-scores[low] - lower) / width_below)
    return quantiles


def _tail_of(train: Array) -> tuple[float, float, float]:
    """Where the upper tail begins (between two different scores), its share, and the mean excess in it."""
    n, values = len(train), np.unique(train)
    clips = max(1, min(int(np.ceil(max(TAIL * n, np.sqrt(n)))), n // 2))
    first = max(np.searchsorted(values, np.sort(train)[-clips]), np.searchsorted(values, np.median(train), "right"))
    first = min(int(first), len(values) - 1)
    begin = (values[first - 1] + values[first]) / 2
    excess = train[train >= values[first]] - begin
    return float(begin), len(excess) / n, float(excess.mean())


METHODS: dict[Method, Callable[[Array, Array], Array]] = {
    "location_scale": location_scale,
    "tail": tail,
    "gamma": gamma,
}


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
    for machine, section, group in groups(table):
        check_varied(score[group & test], f"machine {machine} section {section}", "test")
        calibrated[group] = location_scale(score[group & test], score[group])
    return with_scores(table, score, calibrated, {**metadata_of(table), TRANSDUCTIVE: "true"})
