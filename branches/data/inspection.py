"""What a person should know of a data set before anything is computed from it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from branches.audio import read_clip
from scoring.errors import InputError


@dataclass(frozen=True)
class Inspection:
    """Lines on clips that cannot be used (`problems`), and on clips that can but look wrong (`notes`)."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def inspect(root: Path, index: pa.Table) -> Inspection:
    """Read every clip of the index; a recording that stands there twice, or has a silent channel, is noted.

    The same recording among the training and the test clips makes a score look better than it is.
    """
    inspection = Inspection()
    first: dict[bytes, str] = {}
    for path in index["path"].to_pylist():
        try:
            samples = read_clip(root / path)
        except InputError as error:
            inspection.problems.append(str(error))
            continue
        silent = np.flatnonzero(np.ptp(samples, axis=0) == 0)
        if len(silent):
            inspection.notes.append(f"{path}: nothing is heard on channel {', '.join(map(str, silent))}")
            continue
        other = first.setdefault(hashlib.sha256(samples.tobytes()).digest(), path)
        if other != path:
            inspection.notes.append(f"{path}: the same recording as {other}")
    return inspection
