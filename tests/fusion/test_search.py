"""A fusion as a whole: what it delivers, what it says of it, and what has no say in it."""

import json
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from cluster.session import session
from fusion.joined import Joined, apply_weights
from fusion.methods import METHODS
from fusion.scales import on_scale
from fusion.search import fuse
from fusion.tasks import run_here
from scoring.calibration import calibrate, transductive_normalisation
from scoring.errors import InputError
from scoring.metrics import official_metrics
from scoring.table import REPORT_ONLY, conform, is_transductive, metadata_of
from tests.fusion.pools import MACHINES, TREE, make_pool, tiny_systems, turned
from tests.tables import make_table

# Four more members with errors of their own, and equal weights on both levels.
WIDE = {**TREE, "c": {f"n{i}": [f"n{i}"] for i in range(4)}}
EQUAL = np.array([2, 2, 4, 8, 2, 2, 2, 2]) / 24
TABLES = make_pool() | {f"n{i}": make_table(MACHINES, 40, 40, 0.9, seed=10 + i) for i in range(4)}


@pytest.fixture(scope="module")
def fused():
    return fuse(TABLES, WIDE, {"made": "here"})


def figures(fusion):
    v = fusion.validation
    return (fusion.method, fusion.weights, v.in_sample, v.lomo, v.gains, v.methods, v.marginal)


def test_independent_errors_give_a_large_gain_and_all_figures_are_of_what_is_delivered(fused):
    assert sum(fused.weights.values()) == pytest.approx(1)
    assert fused.weights["g0"] == fused.weights["g1"] == pytest.approx(fused.configuration_weights["a"]["good"] / 2)
    assert fused.table.equals(apply_weights(TABLES, fused.weights, {"made": "here"}, fused.scale))
    assert (fused.method != "best_single") == ("beats" in fused.why and "do not beat" not in fused.why)
    v, joined = fused.validation, Joined.read(TABLES, fused.weights)
    assert official_metrics(fused.table).omega == pytest.approx(v.in_sample.omega)
    assert official_metrics(fused.held_out).omega == pytest.approx(v.lomo.omega)
    assert metadata_of(fused.held_out) == {"made": "here", "weights": "chosen without the machine"}
    assert set(v.methods) == set(METHODS)
    for method, scale in (("uniform", "calibrated"), ("rank_average", "rank")):
        expected = pytest.approx(official_metrics(joined.fused(EQUAL, scale, {})).omega, abs=0.01)
        assert (v.methods[method].in_sample.omega, v.methods[method].lomo.omega) == (expected, expected)
    for method in ("uniform", "best_single"):
        assert v.gains[method].gain == pytest.approx(v.lomo.omega - v.methods[method].lomo.omega)
    assert v.gains["best_single"].gain > 3
    assert v.gains["best_single"].clips[0] > 0
    assert v.interval[0] < v.lomo.omega < v.interval[1]
    assert v.marginal["a/poor"] < v.marginal["a/good"]
    assert v.names == ("a/good", "a/poor", "b/other", "c/n0", "c/n1", "c/n2", "c/n3")


def test_a_machines_labels_have_no_say_in_its_expected_figure(fused):
    other = fuse(turned(TABLES, "pump"), WIDE)
    pump = fused.held_out["machine"].to_numpy() == "pump"
    assert other.held_out["score"].to_numpy()[pump].tolist() == fused.held_out["score"].to_numpy()[pump].tolist()
    held_out = [f.validation.methods["greedy"].lomo.machines["pump"].hmean for f in (fused, other)]
    assert held_out[1] < 50 < held_out[0]


@pytest.mark.slow
@given(system=tiny_systems())
@settings(max_examples=8, deadline=None)
def test_a_fusion_of_tiny_tables_never_warns_and_its_figures_are_strict_json(system):
    fusion = fuse(*system)
    assert sum(fusion.weights.values()) == pytest.approx(1)
    if fusion.validation is not None:
        json.dumps(asdict(fusion.validation), allow_nan=False, default=np.ndarray.tolist)
    assert (fusion.validation is not None and fusion.validation.lomo is not None) == (fusion.held_out is not None)


@pytest.mark.slow
def test_the_seed_decides_and_neither_order_nor_place_of_execution_changes_anything():
    tables = make_pool(MACHINES[:2], 8)
    with session(num_cpus=2):
        from fusion.on_ray import run_on_ray  # imports ray, and that only after the session has set it up

        runners = (run_here, lambda problem, tasks: run_here(problem, tasks[::-1]), run_on_ray)
        forward, *others = (fuse(tables, TREE, runner=runner) for runner in runners)
    assert [figures(other) for other in others] == [figures(forward)] * 2
    assert forward.validation.methods["evolution"] != fuse(tables, TREE, seed=1).validation.methods["evolution"]


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


def test_labels_and_tables_that_differ_or_labels_that_came_later_reach_no_search():
    tables, equal = make_pool(("fan",), 6), dict.fromkeys(TREE["a"]["good"], 0.5)
    other = {**tables, "g1": turned(tables, "fan")["g1"]}
    assert apply_weights(other, equal).equals(apply_weights(tables, equal))
    with pytest.raises(InputError, match=r"the condition of .* is anomaly in g0 and normal in g1"):
        fuse(other, TREE)
    with pytest.raises(InputError, match=r"o0 lacks fan/test/source_anomaly_0000.wav .* and 0 more that g0 has"):
        fuse({**tables, "o0": tables["o0"].slice(1)}, TREE)
    with pytest.raises(ValueError, match="labels for reports only have reached a search"):
        fuse({name: table.replace_schema_metadata({REPORT_ONLY: "true"}) for name, table in tables.items()}, TREE)


def test_a_fused_table_is_the_weighted_sum_calibrated_anew_whatever_labels_order_and_other_tables_there_are():
    tables, weights = make_pool(per_cell=5), {"g0": 0.5, "g1": 0.0, "p0": 0.2, "o0": 0.3}
    fused, known = apply_weights(tables, weights, {"x": "y"}), tables["g0"].drop_columns(["score", "calibrated"])
    score = sum(w * tables[name]["calibrated"].to_numpy() for name, w in weights.items())
    assert fused["score"].to_numpy() == pytest.approx(score)
    assert fused["calibrated"].to_numpy() == pytest.approx(calibrate(fused, score))
    assert fused.drop_columns(["score", "calibrated"]).equals(known)
    assert metadata_of(fused) == {"x": "y"}
    del tables["g1"]
    nothing, order = pa.nulls(len(score), pa.string()), np.arange(len(score))[::-1]
    for name, table in tables.items():
        tables[name] = table.set_column(5, "condition", nothing).set_column(4, "domain", nothing).take(order)
    unknown = apply_weights(tables, weights)
    assert unknown.select(["clip", "score", "calibrated"]).equals(fused.select(["clip", "score", "calibrated"]))
    assert unknown["condition"].null_count == len(score)


def test_a_rank_is_the_share_of_its_machines_training_clips_below_a_tie_counting_half():
    table = conform(pa.concat_tables([make_table(train=10), make_table(["fan"], 3, 7, section=1)]))
    machine, section, split = (table[name].to_numpy() for name in ("machine", "section", "split"))
    score, expected = table["score"].to_numpy().round(1), []
    for i in range(len(table)):
        train = score[(machine == machine[i]) & (section == section[i]) & (split == "train")]
        expected.append(np.mean((train < score[i]) + (train == score[i]) / 2))
    assert on_scale("rank", table, np.stack([-score, score]))[1].tolist() == pytest.approx(expected)
    assert on_scale("calibrated", table, score) is score


def test_transductive_tables_rank_their_own_clips_and_mark_what_is_made_of_them():
    test_rows = {n: t.filter(pa.compute.equal(t["split"], "test")) for n, t in make_pool(MACHINES[:2], 6).items()}
    with pytest.raises(InputError, match="machine fan section 0 has 0 training clips"):
        fuse(test_rows, TREE)
    normalised = {name: transductive_normalisation(table) for name, table in test_rows.items()}
    fusion = fuse(normalised, TREE)
    assert (fusion.transductive, is_transductive(fusion.table)) == (True, True)
    assert fusion.table["calibrated"].null_count == 0
    ranks = on_scale("rank", normalised["g0"], normalised["g0"]["score"].to_numpy()[None])[0]
    assert sorted(ranks) == pytest.approx(np.repeat((np.arange(24) + 0.5) / 24, 2))
