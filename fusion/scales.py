"""The scales on which members can be averaged: calibrated scores as they are, or their ranks."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scoring.table import groups, is_transductive

CALIBRATED, RANK = "calibrated", "rank"


def on_scale(scale: str, clips: pa.Table, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Calibrated scores (..., rows) on a scale: unchanged, or as ranks.

    A rank is the share of its machine's and section's training clips that a clip scores above, a tie counting
    half. Test clips never rank each other, unless the tables are transductive already: then there are no training
    rows and nothing is lost.
    """
    return scores if scale == CALIBRATED else _ranks(clips, scores)


def _ranks(clips: pa.Table, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    reference = clips["split"].to_numpy() == ("test" if is_transductive(clips) else "train")
    ranks = np.empty_like(scores)
    for _, _, group in groups(clips):
        for row, out in zip(np.atleast_2d(scores), np.atleast_2d(ranks), strict=True):
            references = np.sort(row[group & reference])
            below, up_to = (np.searchsorted(references, row[group], side) for side in ("left", "right"))
            out[group] = (below + up_to) / (2 * len(references))
    return ranks
