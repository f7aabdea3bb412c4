import numpy as np
import pyarrow as pa
import pytest

from fusion.complementarity import correlations, marginals
from fusion.evidence import validation_of
from fusion.hierarchy import configurations_of
from fusion.methods import METHODS
from fusion.resampling import compare
from fusion.tasks import sets_left_out
from fusion.validation import Estimates
from scoring.bootstrap import bootstrap_intervals
from tests.fusion.pools import MACHINES, TREE, labelled, make_pool, rng

GOOD, POOR, NEARLY_POOR = np.array([[1, 0, 0], [0, 1, 0], [0, 0.9, 0.1]])
EQUAL = np.full(4, 0.25)


@pytest.fixture(scope="module")
def scores():
    return labelled(make_pool())


def test_figures_are_of_a_choice_made_without_the_machine(scores):
    """Of a search whose strengths change places once a machine is left out: what looks good is not what is got."""
    found = {}
    for out in sets_left_out(MACHINES):
        weights = (GOOD, POOR) if len(out) < 2 else (POOR, GOOD)
        found[out] = {method: {"": POOR} for method in METHODS}
        found[out] |= {"best_single": {"": NEARLY_POOR}, "greedy": dict(zip("ab", weights, strict=True))}
    pool = configurations_of(scores, TREE)
    estimates = Estimates(dict.fromkeys(["calibrated", "rank"], pool), found)
    good, poor, nearly = (pytest.approx(pool.omega(weights)) for weights in (GOOD, POOR, NEARLY_POOR))
    found = validation_of(estimates, seed=0)
    assert estimates.choose() == ("greedy", "a")
    assert (found.in_sample.omega, found.lomo.omega) == (good, poor)
    assert found.interval[0] < found.lomo.omega < found.interval[1]
    np.testing.assert_allclose(found.held_out, POOR @ pool.values)
    greedy = found.methods["greedy"]
    assert (greedy.strength, greedy.lomo.omega, greedy.fixed) == ("a", poor, good)
    assert (greedy.gain, greedy.gain_error) == estimates.gain(("greedy", "a"))
    assert found.methods["best_single"].lomo.omega == nearly
    assert found.gains["best_single"].gain == pytest.approx(pool.omega(POOR) - pool.omega(NEARLY_POOR))
    assert found.gains["uniform"].gain == 0
    assert found.marginal == {"a/good": 0, "a/poor": None, "b/other": 0}


def test_correlation_is_pearsons_inside_machines(scores):
    expected = np.mean([np.corrcoef(scores.values[:, rows]) for rows in scores.cells.rows], axis=0)
    assert correlations(scores) == pytest.approx(expected)
    constant = scores.with_values(np.stack([np.zeros(scores.values.shape[1]), scores.values[0]]))
    assert correlations(constant) == pytest.approx(np.diag([0, 1]))


def test_a_marginal_is_what_is_lost_without_a_member_by_the_weights_of_each_machine(scores):
    lost = marginals(scores, dict.fromkeys(MACHINES, EQUAL))
    assert lost[2] < 0 < lost[0]
    assert lost[0] == pytest.approx(scores.omega(EQUAL) - scores.omega(np.array([0, 1, 1, 1]) / 3))
    alone = {**dict.fromkeys(MACHINES, EQUAL), "pump": np.eye(4)[1]}
    assert [value is None for value in marginals(scores, alone)] == [False, True, False, False]


def test_gains_are_told_from_noise_by_pairs_on_the_same_clips_and_machines():
    """Of two machines drawn anew each is both one time in four: the ends of the interval. One has no targets."""
    tables = make_pool(("fan", "pump"))
    domain = np.where(tables["g0"]["machine"].to_numpy() == "fan", "source", tables["g0"]["domain"].to_numpy())
    tables = {name: table.set_column(4, "domain", pa.array(domain)) for name, table in tables.items()}
    scores = labelled({name: tables[name] for name in ("g0", "p0", "g1")})
    values = [*scores.values[[0, 1, 0]], scores.values[[0, 2]].mean(axis=0)]
    members = scores.with_values(np.stack(values), ("good", "useless", "itself", "half the same"))
    omega, *by_machine = (m.omega(np.eye(4)) for m in (members, members.without(["fan"]), members.without(["pump"])))
    interval, gains = compare(members, rng())
    assert interval == pytest.approx(bootstrap_intervals(tables["g0"]).omega, abs=1)
    assert gains["useless"].gain == pytest.approx(omega[0] - omega[1])
    assert gains["useless"].machines == pytest.approx(sorted(of[0] - of[1] for of in by_machine))
    assert 5 < gains["useless"].clips[0] < gains["useless"].gain < gains["useless"].clips[1]
    assert gains["itself"].clips == gains["itself"].machines == (0, 0)
    assert np.ptp(gains["half the same"].clips) < np.ptp(interval)
