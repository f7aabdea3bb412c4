"""The scales on which members are averaged: calibrated scores as they are, or their ranks among training clips."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scoring.table import groups, is_transductive

Scale = Literal["calibrated", "rank"]
SCALES: tuple[Scale, ...] = get_args(Scale)


def on_scale(scale: Scale, clips: pa.Table, calibrated: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores (T, rows) on a scale from calibrated ones, where larger is more anomalous as well.

    A rank is the share of its machine's and section's training clips that a clip scores above, a tie counting
    half. Test clips never rank each other, unless the tables are transductive already: then there are no training
    rows and nothing is lost.

    clips: machine, section and split of each row
    """
    if scale == "calibrated":
        return calibrated
    reference = clips["split"].to_numpy() == ("test" if is_transductive(clips) else "train")
    ranks = np.empty_like(calibrated)
    for _, _, group in groups(clips):
        for scores, out in zip(calibrated, ranks, strict=True):
            references = np.sort(scores[group & reference])
            below, up_to = (np.searchsorted(references, scores[group], side) for side in ("left", "right"))
            out[group] = (below + up_to) / (2 * len(references))
    return ranks
