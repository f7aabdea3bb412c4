from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.hierarchy import choose_weights, flatten, level_weights, tables_of, uniform_weights
from fusion.labelled import LabelledScores
from fusion.methods import METHODS, best_single, tpe, uniform
from fusion.search import Task, _best, _search_all, fuse, run_here, search_weights
from scoring.errors import InputError
from scoring.metrics import official_metrics
from scoring.table import conform
from tests.tables import make_table

MACHINES = ("fan", "pump", "valve")
TREE = {"a": {"good": ["g0", "g1"], "poor": ["p0"]}, "b": {"other": ["o0"]}}


@pytest.fixture(scope="module")
def tables():
    """Independent errors: averaging must help, and `p0` knows nothing."""
    strength = {"g0": 1.0, "g1": 1.0, "p0": 0.0, "o0": 0.8}
    return {name: make_table(MACHINES, 40, 40, s, seed=i) for i, (name, s) in enumerate(strength.items())}


@pytest.fixture(scope="module")
def scores(tables):
    return LabelledScores.from_tables(tables)


@pytest.fixture(scope="module")
def fused(tables):
    return fuse(tables, TREE)


rng = np.random.default_rng


@pytest.mark.parametrize("method", METHODS)
def test_weights_are_on_the_simplex(scores, method):
    weights = choose_weights(scores, TREE, METHODS[method], rng(0))
    assert list(weights) == ["g0", "g1", "p0", "o0"]
    assert sum(weights.values()) == pytest.approx(1)
    assert min(weights.values()) >= 0


@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=4), min_size=1, max_size=4), st.data())
@settings(max_examples=50, deadline=None)
def test_flattened_weights_keep_the_levels(shape, data):
    tree = {
        f"s{i}": {f"c{j}": [f"{i}.{j}.{k}" for k in range(n)] for j, n in enumerate(configurations)}
        for i, configurations in enumerate(shape)
    }

    def simplex(n):
        raw = np.array(data.draw(st.lists(st.floats(0.01, 1), min_size=n, max_size=n)))
        return raw / raw.sum()

    over, inside = simplex(len(shape)), [simplex(len(c)) for c in shape]
    flat = flatten(tree, over, inside)
    assert sum(flat.values()) == pytest.approx(1)
    levels = level_weights(tree, flat)
    for i, configurations in enumerate(levels.values()):
        assert list(configurations.values()) == pytest.approx(over[i] * inside[i])
    for configurations in tree.values():
        for seeds in configurations.values():
            assert len({flat[s] for s in seeds}) == 1


def test_uniform_needs_no_labels(scores):
    assert uniform_weights(TREE) == pytest.approx(choose_weights(scores, TREE, uniform, rng(0)))
    assert uniform_weights(TREE) == pytest.approx({"g0": 0.125, "g1": 0.125, "p0": 0.25, "o0": 0.5})


def test_a_table_that_stands_twice_gets_both_weights():
    tree = {"a": {"x": ["t"]}, "b": {"y": ["t"], "z": ["u"]}}
    flat = flatten(tree, np.array([0.5, 0.5]), [np.ones(1), np.array([0.4, 0.6])])
    assert flat == pytest.approx({"t": 0.7, "u": 0.3})
    levels = level_weights(tree, flat)
    assert sum(w for c in levels.values() for w in c.values()) == pytest.approx(1)


def test_best_single_takes_the_best(scores):
    alone = [float(scores.omega(np.eye(4)[i])) for i in range(4)]
    assert best_single(scores, rng(0)).argmax() == int(np.argmax(alone))


def test_the_search_beats_every_single_member_and_leaves_the_useless_one(scores):
    weights = tpe(scores, rng(0))
    assert scores.omega(weights) > max(float(scores.omega(v)) for v in np.eye(4))
    assert weights[2] < 0.15


def test_the_same_seed_gives_the_same_weights(scores):
    task = Task("tpe", frozenset(), 7)
    assert search_weights(scores, TREE, task) == search_weights(scores, TREE, task)
    assert search_weights(scores, TREE, replace(task, seed=8)) != search_weights(scores, TREE, task)


@pytest.fixture(scope="module")
def turned(tables):
    """The same scores, with the labels of one machine turned round."""
    other = {"normal": "anomaly", "anomaly": "normal"}
    result = {}
    for name, table in tables.items():
        columns = (table[k].to_pylist() for k in ("machine", "split", "condition"))
        labels = [other[c] if m == "pump" and s == "test" else c for m, s, c in zip(*columns, strict=True)]
        result[name] = table.set_column(5, "condition", pa.array(labels))
    return result


@pytest.mark.parametrize("method", METHODS)
def test_a_machine_left_out_has_no_say(tables, turned, method):
    task = Task(method, frozenset({"pump"}), 0)
    left_out = [search_weights(LabelledScores.from_tables(t), TREE, task) for t in (tables, turned)]
    assert left_out[0] == left_out[1]


def test_lomo_is_measured_on_machines_left_out(tables, fused):
    scores = LabelledScores.from_tables(tables)
    choice = fused.methods["tpe"]
    for machine in MACHINES:
        weights = search_weights(scores, TREE, Task("tpe", frozenset({machine}), 0))
        auc_source = scores.only([machine]).fused_cells(weights)[0, 0]
        assert choice.lomo.machines[machine].auc_source == pytest.approx(auc_source)
    assert fused.methods["uniform"].lomo.omega == pytest.approx(fused.methods["uniform"].in_sample.omega)


def test_the_best_honest_estimate_is_delivered(fused):
    assert fused.choice.lomo.omega == max(c.lomo.omega for c in fused.methods.values())
    assert fused.choice.weights == fused.methods[fused.delivered].weights


def test_the_fused_table_has_the_metrics_that_are_claimed(fused):
    assert official_metrics(fused.table).omega == pytest.approx(fused.choice.in_sample.omega)
    assert conform(fused.table).equals(fused.table)


def test_the_runner_changes_nothing(tables, fused):
    def backwards(scores, tree, tasks):
        return run_here(scores, tree, list(tasks)[::-1])[::-1]

    assert fuse(tables, TREE, runner=backwards).methods == fused.methods


def test_one_machine_gives_uniform_and_says_why():
    tables = {name: make_table(["fan"], seed=i) for i, name in enumerate(["g0", "g1", "p0", "o0"])}
    fusion = fuse(tables, TREE)
    assert fusion.delivered == "uniform"
    assert "fewer than two labelled machines" in fusion.why
    assert fusion.choice.lomo is None
    assert fusion.lomo is None


def test_labels_of_one_kind_only_choose_nothing():
    normal = make_table().filter(pa.compute.equal(make_table()["condition"], "normal"))
    fusion = fuse(dict.fromkeys(["g0", "g1", "p0", "o0"], normal), TREE)
    assert fusion.delivered == "uniform"
    assert fusion.choice.in_sample is None


def test_a_machine_without_anomalies_has_no_say(tables, fused):
    quiet = make_table(["drone"]).filter(pa.compute.equal(make_table(["drone"])["condition"], "normal"))
    fusion = fuse({name: conform(pa.concat_tables([t, quiet])) for name, t in tables.items()}, TREE)
    assert (fusion.choice, fusion.lomo) == (fused.choice, fused.lomo)


def test_the_expected_figure_is_of_a_choice_made_without_the_machine(tables, turned, fused):
    for data in (tables, turned):
        scores = LabelledScores.from_tables(data)
        found = _search_all(scores, TREE, 0, run_here)
        method = _best(scores, found, frozenset({"pump"}))
        weights = found[method, frozenset({"pump"})]
        if data is tables:
            chosen = (method, weights)
            assert fused.lomo.machines["pump"].pauc == pytest.approx(scores.only(["pump"]).fused_cells(weights)[2, 0])
        else:
            assert (method, weights) == chosen


def test_without_labels_weights_are_uniform():
    tables = {n: make_table(labelled=False, seed=i) for i, n in enumerate(["g0", "g1", "p0", "o0"])}
    fusion = fuse(tables, TREE)
    assert list(fusion.methods) == ["uniform"]
    assert fusion.choice.in_sample is None


def test_machines_without_labels_get_the_weights_of_the_labelled_ones(tables, fused):
    with_hidden = {
        name: conform(pa.concat_tables([table, make_table(["drone"], labelled=False, seed=i)]))
        for i, (name, table) in enumerate(tables.items())
    }
    fusion = fuse(with_hidden, TREE)
    assert (fusion.choice, fusion.lomo) == (fused.choice, fused.lomo)
    drone = fusion.table.filter(pa.compute.equal(fusion.table["machine"], "drone"))
    assert drone.num_rows == with_hidden["g0"].num_rows - tables["g0"].num_rows


def test_row_order_of_the_tables_does_not_matter(tables, fused):
    turned = {name: table.take(np.arange(table.num_rows)[::-1]) for name, table in tables.items()}
    assert fuse(turned, TREE).table.equals(fused.table)


def test_what_is_missing_is_named(tables):
    with pytest.raises(InputError, match="no score table for p0"):
        fuse({k: v for k, v in tables.items() if k != "p0"}, TREE)
    with pytest.raises(InputError, match="at least one sub-system"):
        tables_of({})
    with pytest.raises(InputError, match="configuration x of sub-system a has no seeds"):
        tables_of({"a": {"x": []}})
    with pytest.raises(InputError, match="has no machine valve"):
        fuse({**tables, "o0": make_table(MACHINES[:2], 40, 40)}, TREE)
