from types import SimpleNamespace

import numpy as np
import pytest

from fusion.tasks import sets_left_out
from fusion.validation import SINGLE, UNIFORM, Estimates

MACHINES = ("fan", "pump", "valve")
EQUAL = (60, 60, 60)


class Pool:
    """Of configurations whose weights are the Omega that they reach on each machine."""

    def __init__(self, machines):
        self.machines, self.cells = list(machines), SimpleNamespace(machines=machines)

    def measured(self, weights):
        return np.repeat(weights[..., None, :], 3, axis=-2)


def estimates(uniform=EQUAL, single=EQUAL, machines=MACHINES, **greedy):
    """Of three methods with these Omegas, the same whoever is left out unless a function of who that is."""
    found = {}
    for out in sets_left_out(machines):
        methods = {"uniform": {"": uniform}, "best_single": {"": single}, "greedy": greedy}
        found[out] = {
            method: {s: np.array(o(out) if callable(o) else o, float) for s, o in omegas.items()}
            for method, omegas in methods.items()
            if omegas
        }
    return Estimates(dict.fromkeys(["calibrated", "rank"], Pool(machines)), found)


@pytest.mark.parametrize(
    ("uniform", "searched", "delivered"),
    [
        ((50, 50, 50), EQUAL, SINGLE),
        (EQUAL, EQUAL, SINGLE),
        ((60.05, 60.05, 60.05), EQUAL, SINGLE),  # worth less than 0.1
        ((60.2, 60.2, 60.2), EQUAL, UNIFORM),
        ((63, 60.8, 60), EQUAL, UNIFORM),  # 1.4 standard errors
        ((64, 60, 57), EQUAL, SINGLE),  # 0.2
        (EQUAL, (60.05, 60.05, 60.05), SINGLE),
        (EQUAL, (60.2, 60.2, 60.2), ("greedy", "weak")),
        (EQUAL, (63, 60.9, 60.1), SINGLE),  # 1.5 standard errors, or 1.9 if these were of all machines
        ((61, 61, 61), (60.9, 60.9, 60.9), UNIFORM),
        ((61, 61, 61), (62, 62, 62), ("greedy", "weak")),
    ],
)
def test_what_beats_the_simple_methods_beyond_noise_is_delivered(uniform, searched, delivered):
    assert estimates(uniform, weak=searched, poor=(50, 50, 50)).choose() == delivered


def test_of_those_that_are_worth_it_the_best_is_delivered_with_its_gain():
    found = estimates(weak=(62, 62, 62), strong=(64, 62, 63), lucky=(90, 60, 60))
    assert found.strength("greedy") == ("greedy", "lucky")
    assert found.choose() == ("greedy", "strong")
    gain, error = found.gain(("greedy", "strong"))
    assert gain == pytest.approx(3 / sum(1 / o for o in (64, 62, 63)) - 60)
    assert error == pytest.approx(1 / np.sqrt(3), rel=0.06)


def test_each_machine_is_judged_by_what_was_found_without_it():
    found = estimates(weak=lambda out: [{"fan": 71, "pump": 72, "valve": 73}.get(min(out, default=""), 99)] * 3)
    lomo = found.lomo(lambda _: ("greedy", "weak"))
    assert [metrics.auc_source for metrics in lomo.machines.values()] == pytest.approx([71, 72, 73])
    assert found.in_sample(("greedy", "weak")).omega == pytest.approx(99)


def test_the_choice_without_a_machine_looks_at_pairs_alone():
    """Neither what was found with the machine's help nor what was found without it alone has a say."""
    found = estimates(weak=lambda out: (70, 70, 70) if len(out) == 2 else (50, 50, 50), poor=(55, 55, 55))
    assert found.choose(frozenset(["fan"])) == found.strength("greedy", frozenset(["fan"])) == ("greedy", "weak")
    assert found.choose() == SINGLE
    assert found.strength("greedy") == ("greedy", "poor")


def test_a_machine_left_out_is_not_measured():
    found = estimates(weak=lambda out: (0, 70, 70) if out else EQUAL)
    assert found.choose(frozenset(["fan"])) == ("greedy", "weak")
    assert np.isnan(found.held_out(lambda _: SINGLE, frozenset(["fan"]))[0]).tolist() == [True, False, False]


def test_one_machine_tests_nothing():
    found = estimates(machines=("fan",), uniform=(60,), single=(70,), strong=(80,), weak=(90,))
    assert found.choose() == UNIFORM
    assert found.lomo(found.choose) is None
    assert found.gain(SINGLE) == (None, None)
    assert found.strength("greedy") == ("greedy", "strong")
    of_two = estimates(machines=MACHINES[:2], uniform=(50, 50), single=(70, 70))
    assert (of_two.choose(), of_two.choose(frozenset(["fan"]))) == (SINGLE, UNIFORM)
    assert of_two.gain(UNIFORM) == (pytest.approx(-20), pytest.approx(0, abs=1e-9))
