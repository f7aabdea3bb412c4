"""Pools of score tables for tests of fusion."""

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from fusion.joined import Joined
from fusion.labelled import LabelledScores
from scoring.calibration import calibrate
from scoring.table import conform, with_scores
from tests.tables import make_table

MACHINES = ("fan", "pump", "valve")
TREE = {"a": {"good": ["g0", "g1"], "poor": ["p0"]}, "b": {"other": ["o0"]}}
STRENGTH = {"g0": 1.0, "g1": 1.0, "p0": 0.0, "o0": 0.8}


def make_pool(machines=MACHINES, per_cell=40, **options):
    """Tables by name with independent errors: averaging must help, and `p0` knows nothing."""
    of = enumerate(STRENGTH.items())
    return {name: make_table(machines, per_cell, 40, strength, seed=i, **options) for i, (name, strength) in of}


def labelled(tables):
    joined = Joined.read(tables, tables)
    return LabelledScores.of(joined.names, joined.values, joined.first)


def turned(tables, machine):
    """The same scores, with the labels of one machine turned round."""
    other, rows = {"normal": "anomaly", "anomaly": "normal"}, next(iter(tables.values())).to_pylist()
    kept = [(row["machine"], row["split"]) != (machine, "test") for row in rows]
    labels = [r["condition"] if same else other[r["condition"]] for r, same in zip(rows, kept, strict=True)]
    return {name: table.set_column(5, "condition", pa.array(labels)) for name, table in tables.items()}


def rng(seed=0):
    return np.random.default_rng(seed)


@st.composite
def tiny_systems(draw):
    """Score tables by name and a tree: cells of few clips or none, hidden labels; perfect, reversed and tied scores."""
    random, clips, tables = rng(draw(st.integers(0, 9999))), [], {}
    for machine, section in (("fan", 0), ("a/b 1", 0), ("valve", 0), ("fan", 1))[: draw(st.integers(1, 4))]:
        known = draw(st.integers(0, 5)) > 0
        whole = make_table([machine], 3, draw(st.integers(3, 5)), labelled=known, section=section)
        kept = random.random(len(whole)) < draw(st.sampled_from([0.2, 0.6, 1]))
        clips.append(whole.filter(pa.array(kept | (whole["split"].to_numpy() == "train"))))
    clips = conform(pa.concat_tables(clips))
    machine, split, condition = (clips[name].to_numpy() for name in ("machine", "split", "condition"))
    for name in "abcd"[: draw(st.integers(1, 4))]:
        shift = random.choice([-30, 0, 1, 30], 3)[np.unique(machine, return_inverse=True)[1]]
        score = random.normal(size=len(clips)) + shift * (condition == "anomaly")
        score = np.where((split == "test") & draw(st.booleans()), score.round(), score)
        tables[name] = with_scores(clips, score, calibrate(clips, score), {})
    names, alone = list(tables), draw(st.integers(1, len(tables)))
    seeds = {"seeds": {"all": names[alone:]}} if names[alone:] else {}
    return tables, {"singles": {name: [name] for name in names[:alone]}, **seeds}
