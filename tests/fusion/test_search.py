import numpy as np
import pyarrow as pa
import pytest

from fusion.methods import METHODS
from fusion.search import fuse
from scoring.calibration import transductive_normalisation
from scoring.errors import InputError
from scoring.metrics import official_metrics
from scoring.table import conform, is_transductive, metadata_of
from tests.fusion.pools import MACHINES, TREE, make_pool, turned
from tests.tables import make_table

# Four more members with errors of their own.
WIDE = {**TREE, "c": {f"n{i}": [f"n{i}"] for i in range(4)}}


@pytest.fixture(scope="module")
def tables():
    return make_pool() | {f"n{i}": make_table(MACHINES, 40, 40, 0.9, seed=10 + i) for i in range(4)}


@pytest.fixture(scope="module")
def fused(tables):
    return fuse(tables, WIDE, {"made": "here"})


def figures(fusion):
    v = fusion.validation
    return (fusion.method, fusion.strength, fusion.weights, v.in_sample, v.lomo, v.gains, v.methods, v.marginal)


def test_independent_errors_give_a_large_gain(fused):
    v = fused.validation
    assert v.lomo.omega > v.methods["best_single"].lomo.omega + 3
    assert v.gains["best_single"].clips[0] > 0
    assert fused.method != "best_single"
    assert "beats the best single configuration" in fused.why or "uniform weights and the best single" in fused.why


def test_the_delivered_weights_make_the_fused_table(tables, fused):
    assert sum(fused.weights.values()) == pytest.approx(1)
    assert fused.weights["g0"] == fused.weights["g1"]
    assert sum(w for c in fused.configuration_weights.values() for w in c.values()) == pytest.approx(1)
    assert official_metrics(fused.table).omega == pytest.approx(fused.validation.in_sample.omega)
    assert conform(fused.table).equals(fused.table)
    assert metadata_of(fused.table) == {"made": "here"}
    score = sum(w * tables[name]["calibrated"].to_numpy() for name, w in fused.weights.items())
    assert fused.table["score"].to_numpy() == pytest.approx(score)


def test_every_method_has_its_figures(fused):
    v = fused.validation
    assert set(v.methods) == set(METHODS)
    for choice in v.methods.values():
        assert 50 < choice.lomo.omega < 100
    assert v.methods["uniform"].lomo.omega == pytest.approx(v.methods["uniform"].in_sample.omega)
    assert v.interval[0] < v.lomo.omega < v.interval[1]
    assert official_metrics(fused.held_out).omega == pytest.approx(v.lomo.omega)
    assert v.marginal["a/poor"] < v.marginal["a/good"]
    assert v.correlation.shape == (7, 7)


def test_the_expected_figure_is_of_a_choice_made_without_the_machine(tables, fused):
    """Whatever a machine's labels are, the others' part of the procedure does not change: AUC turns round with them."""
    other = fuse(turned(tables, "pump"), WIDE)
    ours, theirs = (f.validation.lomo.machines["pump"] for f in (fused, other))
    assert theirs.auc_source + ours.auc_source == pytest.approx(100, abs=15)  # the anomalies of both domains count
    held = [f.validation.methods["greedy"].lomo.machines["pump"].hmean for f in (fused, other)]
    assert held[1] < 50 < held[0]


def test_one_machine_gives_uniform_and_says_why():
    fusion = fuse(make_pool(("fan",), 6), TREE)
    assert fusion.method == "uniform"
    assert "fewer than two labelled machines" in fusion.why
    assert fusion.validation.lomo is None
    assert fusion.validation.gains == {}


def test_a_machine_may_be_called_anything():
    names = ("fold 1", "fold 2", "a/b")
    fusion, plain = (fuse(make_pool(machines, 8), TREE) for machines in (names, ("a", "b", "c")))
    assert tuple(fusion.validation.lomo.machines) == tuple(sorted(names))
    for name in ("uniform", "best_single", "softmax", "greedy"):  # which draw no random numbers
        omegas = [f.validation.methods[name].lomo.omega for f in (fusion, plain)]
        assert omegas[0] == pytest.approx(omegas[1])


def test_a_system_of_one_branch_on_two_sections():
    sections = [make_table(("fan", "pump"), 6, section=section, seed=section) for section in (0, 1)]
    fusion = fuse({"t": conform(pa.concat_tables(sections))}, {"one": {"a": ["t"]}})
    assert fusion.weights == {"t": 1.0}
    assert fusion.method == "best_single"
    assert fusion.validation.lomo.omega == pytest.approx(fusion.validation.in_sample.omega)
    assert fusion.validation.correlation.tolist() == [[pytest.approx(1)]]
    assert fusion.validation.marginal == {"one/a": None}


def test_without_labels_weights_are_uniform_and_nothing_is_claimed():
    fusion = fuse(make_pool(per_cell=4, labelled=False), TREE)
    assert fusion.method == "uniform"
    assert fusion.validation is None
    normal = make_table().filter(pa.compute.equal(make_table()["condition"], "normal"))
    assert fuse(dict.fromkeys(["g0", "g1", "p0", "o0"], normal), TREE).validation is None


def test_machines_that_tell_nothing_have_no_say(tables, fused):
    """One with hidden labels, and one with normals alone."""
    quiet = make_table(["drone"]).filter(pa.compute.equal(make_table(["drone"])["condition"], "normal"))
    hidden = make_table(["saw"], labelled=False)
    more = {name: conform(pa.concat_tables([table, quiet, hidden])) for name, table in tables.items()}
    fusion = fuse(more, WIDE)
    assert figures(fusion) == figures(fused)
    assert fusion.table.num_rows == fused.table.num_rows + quiet.num_rows + hidden.num_rows


def test_transductive_tables_mark_what_is_made_of_them():
    tables = {}
    for name, table in make_pool(per_cell=6).items():
        tables[name] = transductive_normalisation(table.filter(pa.compute.equal(table["split"], "test")))
    fusion = fuse(tables, TREE)
    assert fusion.transductive
    assert is_transductive(fusion.table)
    assert fusion.table["calibrated"].null_count == 0


def test_tables_that_cannot_be_calibrated_are_refused():
    tables = {n: t.filter(pa.compute.equal(t["split"], "test")) for n, t in make_pool(per_cell=4).items()}
    with pytest.raises(InputError, match="machine fan section 0 has 0 training clips"):
        fuse(tables, TREE)


def test_any_mapping_will_do(tables):
    class Counting(dict):
        read = 0

        def __getitem__(self, name):
            Counting.read += 1
            return super().__getitem__(name)

    small = Counting(make_pool(("fan",), 6))
    fuse(small, TREE)
    assert Counting.read <= 5
    assert np.isfinite(tables["g0"]["calibrated"].to_numpy()).all()
