"""The scales on which members are averaged: calibrated scores as they are, their ranks, or such that it is no sum.

A mean of f(score), taken back by the inverse of f, is a generalised mean. Taken of means it is one of all: so the same
kind holds on every level of a system, and weights of the levels multiply as they do in a sum.

`calibrated`          the weighted sum
`rank`                of the shares of training clips that a clip scores above
`soft_minimum s`      −s log of the mean of exp(−score / s): the minimum for small s, the mean for large ones
`generalised_mean p`  power mean of log(1 + exp(score)), which is the score where that is large and never negative
`minimum`             of all that have a weight
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scoring.table import groups, is_transductive

CALIBRATED, RANK, MINIMUM = "calibrated", "rank", "minimum"
SOFT_MINIMUM, GENERALISED_MEAN = "soft_minimum", "generalised_mean"  # each with a number after it

LARGEST = 700.0  # what `exp` takes: a score beyond so many softnesses counts as that many
SMALLEST = -30.0  # score from which a power mean knows no less


def is_sum(scale: str) -> bool:
    """Whether what is delivered on a scale is a weighted sum, and no other kind of mean."""
    return scale in (CALIBRATED, RANK)


def is_scale(scale: object) -> bool:
    """Whether there is such a scale."""
    try:
        name, number = _parts(str(scale))
    except ValueError:
        return False
    if name in (SOFT_MINIMUM, GENERALISED_MEAN):
        return np.isfinite(number) and (number > 0 or (name == GENERALISED_MEAN and number != 0))
    return scale in (CALIBRATED, RANK, MINIMUM)


def _parts(scale: str) -> tuple[str, float]:
    name, _, number = scale.partition(" ")
    return name, float(number) if number else np.nan


def on_scale(scale: str, clips: pa.Table, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Calibrated scores (..., rows) on a scale, where larger is more anomalous as well.

    A rank is the share of its machine's and section's training clips that a clip scores above, a tie counting
    half. Test clips never rank each other, unless the tables are transductive already: then there are no training
    rows and nothing is lost.
    """
    if scale == RANK:
        return _ranks(clips, scores)
    name, number = _parts(scale)
    if name == SOFT_MINIMUM:
        return -np.exp(np.clip(-scores / number, -LARGEST, LARGEST))
    if name == GENERALISED_MEAN:
        return np.sign(number) * np.logaddexp(0, np.maximum(scores, SMALLEST)) ** number
    return scores


def combined(scale: str, weights: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean (..., rows) of members' scores on a scale (C, rows) by weights (..., C): what clips can be ordered by."""
    if scale != MINIMUM:
        return weights @ values
    lowest = np.full((*weights.shape[:-1], values.shape[-1]), np.inf)
    for weight, row in zip(np.moveaxis(weights, -1, 0), values, strict=True):
        np.minimum(lowest, np.where(weight[..., None] > 0, row, np.inf), out=lowest)
    return lowest


def from_scale(scale: str, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores in standard deviations, or shares of ranks, from the `combined` of weights that sum to 1."""
    name, number = _parts(scale)
    if name == SOFT_MINIMUM:
        return -number * np.log(-mean)
    return np.abs(mean) ** (1 / number) if name == GENERALISED_MEAN else mean


def contributions(scale: str, weights: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each member (C, rows) has in the score by weights (C,): its summand, or its share of the mean, of the score.

    They sum to `from_scale` of the `combined` scores.
    """
    if scale == MINIMUM:
        decides = np.where(weights > 0, values.T, np.inf).argmin(axis=1)
        return np.where(np.arange(len(values))[:, None] == decides, values, 0)
    summands = weights[:, None] * values
    mean = summands.sum(axis=0)
    score = from_scale(scale, mean)
    return summands if is_sum(scale) else summands / mean * score


def _ranks(clips: pa.Table, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    reference = clips["split"].to_numpy() == ("test" if is_transductive(clips) else "train")
    ranks = np.empty_like(scores)
    for _, _, group in groups(clips):
        for row, out in zip(np.atleast_2d(scores), np.atleast_2d(ranks), strict=True):
            references = np.sort(row[group & reference])
            below, up_to = (np.searchsorted(references, row[group], side) for side in ("left", "right"))
            out[group] = (below + up_to) / (2 * len(references))
    return ranks
