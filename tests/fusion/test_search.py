import json
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from fusion.joined import Joined, apply_weights
from fusion.methods import METHODS
from fusion.search import fuse
from fusion.tasks import run_here
from scoring.calibration import transductive_normalisation
from scoring.errors import InputError
from scoring.metrics import official_metrics
from scoring.table import REPORT_ONLY, conform, is_transductive, metadata_of
from tests.fusion.pools import MACHINES, TREE, make_pool, tiny_systems, turned
from tests.tables import make_table

# Four more members with errors of their own.
WIDE = {**TREE, "c": {f"n{i}": [f"n{i}"] for i in range(4)}}
EQUAL = np.array([1, 1, 2, 4, 2, 2, 2, 2]) / np.array([12, 12, 12, 12, 24, 24, 24, 24])  # on both levels


@pytest.fixture(scope="module")
def tables():
    return make_pool() | {f"n{i}": make_table(MACHINES, 40, 40, 0.9, seed=10 + i) for i in range(4)}


@pytest.fixture(scope="module")
def fused(tables):
    return fuse(tables, WIDE, {"made": "here"})


def figures(fusion):
    v = fusion.validation
    return (fusion.method, fusion.weights, v.in_sample, v.lomo, v.gains, v.methods, v.marginal)


def test_independent_errors_give_a_large_gain(fused):
    v = fused.validation
    assert v.lomo.omega > v.methods["best_single"].lomo.omega + 3
    assert v.gains["best_single"].clips[0] > 0
    assert (fused.method != "best_single") == ("beats" in fused.why and "do not beat" not in fused.why)


def test_the_delivered_weights_make_the_fused_table(tables, fused):
    assert sum(fused.weights.values()) == pytest.approx(1)
    assert fused.weights["g0"] == fused.weights["g1"]
    assert fused.configuration_weights["a"]["good"] == pytest.approx(2 * fused.weights["g0"])
    assert fused.table.equals(apply_weights(tables, fused.weights, {"made": "here"}, fused.scale))
    assert official_metrics(fused.table).omega == pytest.approx(fused.validation.in_sample.omega)


def test_every_method_has_its_figures(tables, fused):
    v = fused.validation
    assert set(v.methods) == set(METHODS)
    for choice in v.methods.values():
        assert 50 < choice.lomo.omega < 100
    joined = Joined.read(tables, fused.weights)
    for method, scale in (("uniform", "calibrated"), ("rank_average", "rank")):
        expected = pytest.approx(official_metrics(joined.fused(EQUAL, scale, {})).omega, abs=0.01)
        assert v.methods[method].in_sample.omega == v.methods[method].lomo.omega == expected
    for method in ("uniform", "best_single"):
        assert v.gains[method].gain == pytest.approx(v.lomo.omega - v.methods[method].lomo.omega)
    assert v.interval[0] < v.lomo.omega < v.interval[1]
    assert v.marginal["a/poor"] < v.marginal["a/good"]
    assert v.names == ("a/good", "a/poor", "b/other", "c/n0", "c/n1", "c/n2", "c/n3")
    assert official_metrics(fused.held_out).omega == pytest.approx(v.lomo.omega)
    assert metadata_of(fused.held_out) == {"made": "here", "weights": "chosen without the machine"}


def test_a_machines_labels_have_no_say_in_its_expected_figure(tables, fused):
    other = fuse(turned(tables, "pump"), WIDE)
    pump = fused.held_out["machine"].to_numpy() == "pump"
    assert other.held_out["score"].to_numpy()[pump].tolist() == fused.held_out["score"].to_numpy()[pump].tolist()
    held_out = [f.validation.methods["greedy"].lomo.machines["pump"].hmean for f in (fused, other)]
    assert held_out[1] < 50 < held_out[0]


@given(system=tiny_systems())
@settings(max_examples=8, deadline=None)
def test_a_fusion_of_tiny_tables_never_warns_and_its_figures_are_strict_json(system):
    """Warnings are errors in tests."""
    fusion = fuse(*system)
    assert sum(fusion.weights.values()) == pytest.approx(1)
    if fusion.validation is not None:
        json.dumps(asdict(fusion.validation), allow_nan=False, default=np.ndarray.tolist)
    assert (fusion.validation is not None and fusion.validation.lomo is not None) == (fusion.held_out is not None)


def test_the_seed_decides_and_the_order_of_execution_changes_nothing():
    tables = make_pool(MACHINES[:2], 8)
    forward, backward, other = (
        fuse(tables, TREE, seed=seed, runner=lambda problem, tasks, order=order: run_here(problem, tasks[::order]))
        for seed, order in ((0, 1), (0, -1), (1, 1))
    )
    assert figures(forward) == figures(backward)
    assert forward.validation.methods["evolution"] != other.validation.methods["evolution"]


def test_what_labels_do_not_tell_is_not_claimed():
    """Of one machine no choice can be tested, and clips without labels or normals alone tell nothing at all."""
    normal = make_table().filter(pa.compute.equal(make_table()["condition"], "normal"))
    hidden = make_pool(per_cell=4, labelled=False)
    for tables in (make_pool(("fan",), 6), hidden, dict.fromkeys(hidden, normal)):
        fusion = fuse(tables, TREE)
        assert (fusion.method, fusion.scale, fusion.held_out) == ("uniform", "calibrated", None)
        assert list(fusion.weights.values()) == pytest.approx([0.125, 0.125, 0.25, 0.5])
        assert "fewer than two labelled machines" in fusion.why
        assert (fusion.validation is None) == ("pump" in fusion.table["machine"].to_pylist())
        assert fusion.validation is None or (fusion.validation.lomo, fusion.validation.gains) == (None, {})


def test_machines_that_tell_nothing_have_no_say():
    """One with hidden labels, and one with normals alone."""
    tables = make_pool(MACHINES[:2], 8)
    quiet = make_table(["drone"]).filter(pa.compute.equal(make_table(["drone"])["condition"], "normal"))
    more = {n: conform(pa.concat_tables([t, quiet, make_table(["saw"], labelled=False)])) for n, t in tables.items()}
    known, fusion = fuse(tables, TREE), fuse(more, TREE)
    assert figures(fusion) == figures(known)
    assert fusion.table.num_rows == known.table.num_rows + quiet.num_rows + 36


def test_transductive_tables_mark_what_is_made_of_them():
    test_rows = {n: t.filter(pa.compute.equal(t["split"], "test")) for n, t in make_pool(MACHINES[:2], 6).items()}
    with pytest.raises(InputError, match="machine fan section 0 has 0 training clips"):
        fuse(test_rows, TREE)
    fusion = fuse({name: transductive_normalisation(table) for name, table in test_rows.items()}, TREE)
    assert fusion.transductive
    assert is_transductive(fusion.table)
    assert fusion.table["calibrated"].null_count == 0


def test_tables_are_read_one_at_a_time():
    read, tables = [], make_pool(("fan",), 6)

    class Noting(dict):
        def __getitem__(self, name):
            read.append(name)
            return super().__getitem__(name)

    fuse(Noting(tables), TREE)
    assert len(read) <= 5


def test_labels_that_differ_or_came_later_reach_no_search():
    tables = make_pool(("fan",), 6)
    with pytest.raises(InputError, match=r"the condition of .* is anomaly in g0 and normal in g1"):
        fuse({**tables, "g1": turned(tables, "fan")["g1"]}, TREE)
    marked = {name: table.replace_schema_metadata({REPORT_ONLY: "true"}) for name, table in tables.items()}
    with pytest.raises(ValueError, match="labels for reports only have reached a search"):
        fuse(marked, TREE)
