"""Small score tables for tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from scoring.table import SCHEMA, conform


def make_table(
    machines: Sequence[str] = ("fan", "pump"),
    per_cell: int = 6,
    train: int = 12,
    separation: float = 1.0,
    seed: int = 0,
    labelled: bool = True,
    section: int = 0,
) -> pa.Table:
    """Normals ~ N(0, 1) and anomalies ~ N(separation, 1), for each machine, with training rows."""
    rng = np.random.default_rng(seed)
    rows = []
    for machine in machines:
        for i in range(train):
            domain = "target" if i < 3 else "source"
            rows.append((machine, section, f"train_{i:04d}.wav", "train", domain, "normal", rng.normal()))
        for domain in ("source", "target"):
            for condition in ("normal", "anomaly"):
                for i in range(per_cell):
                    score = rng.normal() + separation * (condition == "anomaly")
                    name = f"{domain}_{condition}_{i:04d}.wav"
                    rows.append((machine, section, name, "test", domain, condition, score))
    columns = [list(column) for column in zip(*rows, strict=True)]
    if not labelled:
        for column in (4, 5):
            columns[column] = [v if s == "train" else None for v, s in zip(columns[column], columns[3], strict=True)]
    arrays = [pa.array(c, t) for c, t in zip([*columns, columns[-1]], SCHEMA.types, strict=True)]
    return conform(pa.table(arrays, schema=SCHEMA))
