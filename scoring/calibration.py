"""Calibration: the same score means the same on every branch and machine, from training normals only.

A score of one machine and section becomes its distance from the mean of the training scores in their standard
deviations: where these have the normal distribution, a normal clip exceeds 1.28 one time in ten, whatever the detector.
docs/scoring.md has what other distributions gave.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scoring.errors import InputError, counted
from scoring.table import TRANSDUCTIVE, groups, metadata_of, with_scores

Array = NDArray[np.float64]


def calibrate(clips: pa.Table, score: Array) -> Array:
    """Calibrated scores (rows,), from the training rows of each machine and section.

    Raises InputError if a machine and section has fewer than two training rows, or training scores that do not vary.
    """
    return _calibrated(clips, score, "train")


def recalibrate(table: pa.Table) -> tuple[Array, list[str]]:
    """Calibrated scores (rows,) that follow from a table's scores, and the machines whose own ones do not.

    Scores that were changed by hand leave the old `calibrated` beside them; a table without any has nothing stale.
    Raises InputError as `calibrate`.
    """
    score, stored = (table[column].to_numpy().astype(float) for column in ("score", "calibrated"))
    fresh = calibrate(table, score)
    if np.isnan(stored).any():
        return fresh, []
    off = ~np.isclose(fresh, stored, 1e-6, 1e-6)
    return fresh, sorted(set(table["machine"].to_numpy()[off]))


def check_varied(train: Array, name: str, split: str = "training") -> None:
    """Raise `InputError` if scores (n,) tell no scale: fewer than two, or all equal."""
    if len(train) < 2:
        clips = counted(len(train), f"{split} clip")
        raise InputError(f"{name} has {clips}; at least 2 are needed for a scale of its scores")
    if not train.std() > 1e-12 * max(1.0, float(np.abs(train).max())):
        if np.ptp(train) > 1e-15 * np.abs(train).max():
            problem = f"the {split} scores, about {train.mean():.3g}, vary by only {np.ptp(train):.1g}"
            remedy = "subtract an offset or multiply them, so that they vary by about 1"
        else:
            problem, remedy = f"all {len(train)} {split} scores are equal", "the clips are copies of each other"
        raise InputError(
            f"{name}: {problem}, so they have no scale; {remedy}, or the branch's embeddings have collapsed"
        )


def location_scale(reference: Array, scores: Array) -> Array:
    """Scores (m,) in standard deviations above the mean of the reference scores (n,)."""
    return (scores - reference.mean()) / reference.std(ddof=1)


def transductive_normalisation(table: pa.Table) -> pa.Table:
    """The table with `calibrated` made from its own test rows: against the task's rules, and marked as such.

    For tables without training rows, which nothing else can put on a common scale. No label is used, but each
    test clip's score then depends on the other test clips. `is_transductive` tells such a table from others, and
    keeps telling it of what is fused from them.

    Raises InputError if a machine and section has fewer than two test rows, or test scores that do not vary.
    """
    score = table["score"].to_numpy()
    return with_scores(table, score, _calibrated(table, score, "test"), {**metadata_of(table), TRANSDUCTIVE: "true"})


def _calibrated(table: pa.Table, score: Array, split: str) -> Array:
    rows, called = table["split"].to_numpy() == split, "training" if split == "train" else split
    calibrated = np.empty(len(score))
    for machine, section, group in groups(table):
        reference = score[group & rows]
        check_varied(reference, f"machine {machine} section {section}", called)
        calibrated[group] = location_scale(reference, score[group])
    return calibrated
