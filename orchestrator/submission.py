"""The challenge's submission files of a fused table."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pyarrow as pa

from scoring.decisions import thresholds
from scoring.table import groups


def write_submission(table: pa.Table, folder: Path) -> list[Path]:
    """Write scores and decisions of every test clip of a fused table, one pair of files per machine and section.

    `anomaly_score_<machine>_section_<NN>_test.csv` and `decision_result_….csv` have the columns clip and value,
    no header. A clip is decided an anomaly (1) if its score is above the threshold from the training clips.
    """
    folder.mkdir(parents=True, exist_ok=True)
    limits = thresholds(table)
    test = table["split"].to_numpy() == "test"
    clip, score = table["clip"].to_numpy(), table["score"].to_numpy()
    written = []
    for machine, section, own in groups(table):
        rows = np.flatnonzero(own & test)
        if not len(rows):
            continue
        decision = (score[rows] > limits[machine, section]).astype(int)
        for kind, values in (("anomaly_score", score[rows]), ("decision_result", decision)):
            path = folder / f"{kind}_{machine}_section_{section:02d}_test.csv"
            _write_pairs(path, zip(clip[rows], values.tolist(), strict=True))
            written.append(path)
    return written


def _write_pairs(path: Path, pairs: object) -> None:
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(pairs)  # type: ignore[arg-type]
    os.replace(temporary, path)
