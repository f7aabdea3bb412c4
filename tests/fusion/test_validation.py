"""What weights are worth on machines that had no say in them, which are delivered, and what else labels say."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from fusion.complementarity import correlations, marginals
from fusion.evidence import validation_of
from fusion.hierarchy import configurations_of
from fusion.methods import METHODS
from fusion.resampling import compare
from fusion.tasks import sets_left_out
from fusion.validation import SINGLE, UNIFORM, Estimates
from scoring.bootstrap import bootstrap_intervals
from tests.fusion.pools import MACHINES, TREE, labelled, make_pool, rng

SAME = (60, 60, 60)
FAN = frozenset(["fan"])


def estimates(uniform=SAME, single=SAME, machines=MACHINES, **greedy):
    """Of three methods with these Omegas on the machines, whoever is left out unless a function of who that is."""
    pool = SimpleNamespace(machines=[*machines], cells=SimpleNamespace(machines=machines))
    pool.measured = lambda weights: np.repeat(weights[..., None, :], 3, axis=-2)  # which are these Omegas
    methods = {"uniform": {"": uniform}, "best_single": {"": single}, **({"greedy": greedy} if greedy else {})}
    found = {
        out: {
            method: {s: np.array(o(out) if callable(o) else o, float) for s, o in omegas.items()}
            for method, omegas in methods.items()
        }
        for out in sets_left_out(machines)
    }
    return Estimates(dict.fromkeys(["calibrated", "rank"], pool), found)


@pytest.mark.parametrize(
    ("uniform", "searched", "delivered"),
    [
        ((50, 50, 50), SAME, SINGLE),
        (SAME, SAME, SINGLE),
        ((60.05, 60.05, 60.05), SAME, SINGLE),  # worth less than 0.1
        ((60.2, 60.2, 60.2), SAME, UNIFORM),
        ((63, 60.8, 60), SAME, UNIFORM),  # 1.4 standard errors
        ((64, 60, 57), SAME, SINGLE),  # 0.2
        (SAME, (60.05, 60.05, 60.05), SINGLE),
        (SAME, (60.2, 60.2, 60.2), ("greedy", "weak")),
        (SAME, (63, 60.9, 60.1), SINGLE),  # 1.5 standard errors, or 1.9 if these were of all machines
        ((61, 61, 61), (60.9, 60.9, 60.9), UNIFORM),
        ((61, 61, 61), (62, 62, 62), ("greedy", "weak")),
    ],
)
def test_what_beats_the_simple_methods_beyond_noise_is_delivered(uniform, searched, delivered):
    assert estimates(uniform, weak=searched, poor=(50, 50, 50)).choose() == delivered


def test_of_those_that_are_worth_it_the_best_is_delivered_with_its_gain():
    found = estimates(weak=(62, 62, 62), strong=(64, 62, 63), lucky=(90, 60, 60), late=(61, 61, 61))
    assert found.strength("greedy") == ("greedy", "lucky")
    assert found.choose() == ("greedy", "strong")
    gain, error = found.gain(("greedy", "strong"))
    assert gain == pytest.approx(3 / sum(1 / o for o in (64, 62, 63)) - 60)
    assert error == pytest.approx(1 / np.sqrt(3), rel=0.06)


def test_each_machine_is_judged_by_what_was_found_without_it():
    """And the choice without it by pairs: neither what it helped to find nor what was found without it alone counts."""
    found = estimates(weak=lambda out: [{"fan": 71, "pump": 72, "valve": 73}.get(min(out, default=""), 99)] * 3)
    lomo = found.lomo(lambda _: ("greedy", "weak"))
    assert [metrics.auc_source for metrics in lomo.machines.values()] == pytest.approx([71, 72, 73])
    assert found.in_sample(("greedy", "weak")).omega == pytest.approx(99)
    found = estimates(weak=lambda out: (0, 70, 70) if len(out) == 2 else (50, 50, 50), poor=(55, 55, 55))
    assert found.choose(FAN) == found.strength("greedy", FAN) == ("greedy", "weak")
    assert (found.choose(), found.strength("greedy")) == (SINGLE, ("greedy", "poor"))
    assert np.isnan(found.held_out(lambda _: SINGLE, FAN)[0]).tolist() == [True, False, False]


def test_one_machine_tests_nothing():
    found = estimates(machines=("fan",), uniform=(60,), single=(70,), strong=(80,), weak=(90,))
    assert (found.choose(), found.lomo(found.choose), found.gain(SINGLE)) == (UNIFORM, None, (None, None))
    assert found.strength("greedy") == ("greedy", "strong")
    of_two = estimates(machines=MACHINES[:2], uniform=(50, 50), single=(70, 70))
    assert (of_two.choose(), of_two.choose(FAN)) == (SINGLE, UNIFORM)
    assert of_two.gain(UNIFORM) == (pytest.approx(-20), pytest.approx(0, abs=1e-9))


SCORES = labelled(make_pool())
GOOD, POOR, NEARLY_POOR = np.array([[1, 0, 0], [0, 1, 0], [0, 0.9, 0.1]])


def test_figures_are_of_a_choice_made_without_the_machine():
    """Of a search whose strengths change places once a machine is left out: what looks good is not what is got."""
    found = {}
    for out in sets_left_out(MACHINES):
        weights = (GOOD, POOR) if len(out) < 2 else (POOR, GOOD)
        found[out] = {method: {"": POOR} for method in METHODS}
        found[out] |= {"best_single": {"": NEARLY_POOR}, "greedy": dict(zip("ab", weights, strict=True))}
    pool = configurations_of(SCORES, TREE)
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


def test_correlation_is_pearsons_inside_machines_and_a_marginal_what_is_lost_without_a_member():
    """By the weights of each machine."""
    expected = np.mean([np.corrcoef(SCORES.values[:, rows]) for rows in SCORES.cells.rows], axis=0)
    assert correlations(SCORES) == pytest.approx(expected)
    constant = SCORES.with_values(np.stack([np.zeros(SCORES.values.shape[1]), SCORES.values[0]]))
    assert correlations(constant) == pytest.approx(np.diag([0, 1]))
    equal = dict.fromkeys(MACHINES, np.full(4, 0.25))
    lost = marginals(SCORES, equal)
    assert lost[2] < 0 < lost[0]
    assert lost[0] == pytest.approx(SCORES.omega(equal["fan"]) - SCORES.omega(np.array([0, 1, 1, 1]) / 3))
    alone = marginals(SCORES, {**equal, "pump": np.eye(4)[1]})
    assert [value is None for value in alone] == [False, True, False, False]


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
    useless = gains["useless"]
    assert useless.gain == pytest.approx(omega[0] - omega[1])
    assert useless.machines == pytest.approx(sorted(of[0] - of[1] for of in by_machine))
    assert 5 < useless.clips[0] < useless.gain < useless.clips[1]
    assert gains["itself"].clips == gains["itself"].machines == (0, 0)
    assert np.ptp(gains["half the same"].clips) < np.ptp(interval)
