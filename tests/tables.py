"""Small score tables for tests."""

from itertools import product

import numpy as np
import pyarrow as pa

from scoring.table import SCHEMA, conform


def make_table(machines=("fan", "pump"), per_cell=6, train=12, separation=1.0, seed=0, labelled=True, section=0):
    """Normals ~ N(0, 1) and anomalies ~ N(separation, 1), for each machine, with training rows."""
    rng, rows = np.random.default_rng(seed), []
    for machine in machines:
        for i in range(train):
            known = ("target" if i < 3 else "source", "normal")
            rows.append((machine, section, f"train_{i:04d}.wav", "train", *known, rng.normal()))
        for domain, condition, i in product(("source", "target"), ("normal", "anomaly"), range(per_cell)):
            name, known = f"{domain}_{condition}_{i:04d}.wav", (domain, condition) if labelled else (None, None)
            score = rng.normal() + separation * (condition == "anomaly")
            rows.append((machine, section, name, "test", *known, score))
    columns = list(zip(*rows, strict=True))
    return conform(pa.table([*columns, columns[-1]], SCHEMA))
