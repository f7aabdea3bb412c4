"""Pools of score tables for tests of fusion."""

from __future__ import annotations

from itertools import product

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from fusion.joined import Joined
from fusion.labelled import LabelledScores
from scoring.calibration import calibrate
from scoring.table import SCHEMA, conform, with_scores
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


@st.composite
def tiny_systems(draw):
    """Score tables by name and a tree: cells of few clips or none, hidden labels; perfect, reversed and tied scores."""
    rows = []
    for machine, section in (("fan", 0), ("a/b 1", 0), ("valve", 0), ("fan", 1))[: draw(st.integers(1, 4))]:
        hidden = draw(st.integers(0, 5)) == 0
        rows += [(machine, section, f"{i}.wav", "train", "source", "normal") for i in range(draw(st.integers(3, 5)))]
        for domain, condition in product(("source", "target"), ("normal", "anomaly")):
            names = [f"{domain}_{condition}_{i}.wav" for i in range(draw(st.integers(0, 3)))]
            rows += [(machine, section, name, "test", domain, None if hidden else condition) for name in names]
    clips = conform(pa.table([*zip(*rows, strict=True), [0.0] * len(rows)], SCHEMA.names[:-1]))
    machines, split, condition = (clips[name].to_numpy() for name in ("machine", "split", "condition"))
    tables, random = {}, rng(draw(st.integers(0, 9999)))
    for name in "abcd"[: draw(st.integers(1, 4))]:
        shift = {machine: draw(st.sampled_from([-30, 0, 1, 30])) for machine in sorted(set(machines))}
        score = random.normal(size=len(rows)) + (condition == "anomaly") * [shift[machine] for machine in machines]
        score = np.where((split == "test") & draw(st.booleans()), score.round(), score)
        tables[name] = with_scores(clips, score, calibrate(clips, score), {})
    names, alone = list(tables), draw(st.integers(1, len(tables)))
    seeds = {"seeds": {"all": names[alone:]}} if names[alone:] else {}
    return tables, {"singles": {name: [name] for name in names[:alone]}, **seeds}
