"""Pools of score tables for tests of fusion."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from fusion.joined import Joined
from fusion.labelled import LabelledScores
from tests.tables import make_table

MACHINES = ("fan", "pump", "valve")
TREE = {"a": {"good": ["g0", "g1"], "poor": ["p0"]}, "b": {"other": ["o0"]}}
STRENGTH = {"g0": 1.0, "g1": 1.0, "p0": 0.0, "o0": 0.8}


def make_pool(machines=MACHINES, per_cell=40, **options) -> dict[str, pa.Table]:
    """Independent errors: averaging must help, and `p0` knows nothing."""
    return {
        name: make_table(machines, per_cell, 40, s, seed=i, **options) for i, (name, s) in enumerate(STRENGTH.items())
    }


def labelled(tables) -> LabelledScores:
    joined = Joined.read(tables, tables)
    return LabelledScores.of(joined.names, joined.values, joined.first)


def turned(tables, machine):
    """The same scores, with the labels of one machine turned round."""
    other = {"normal": "anomaly", "anomaly": "normal"}
    result = {}
    for name, table in tables.items():
        columns = (table[k].to_pylist() for k in ("machine", "split", "condition"))
        labels = [other[c] if m == machine and s == "test" else c for m, s, c in zip(*columns, strict=True)]
        result[name] = table.set_column(5, "condition", pa.array(labels))
    return result


def rng(seed=0):
    return np.random.default_rng(seed)
