import numpy as np
import pytest

from fusion.hierarchy import configurations_of
from fusion.tasks import sets_left_out
from fusion.validation import NOBODY, SINGLE, UNIFORM, Estimates
from tests.fusion.pools import MACHINES, TREE, labelled, make_pool

GOOD, POOR, OTHER = np.eye(3)
EQUAL = np.full(3, 1 / 3)


@pytest.fixture(scope="module")
def pools():
    return dict.fromkeys(["calibrated", "rank"], configurations_of(labelled(make_pool()), TREE))


def estimates(pools, greedy=None, single=GOOD, uniform=EQUAL):
    """Estimates with given weights, the same whoever is left out unless a function of who that is."""
    found = {
        left_out: {
            "uniform": {"": uniform},
            "best_single": {"": single},
            "greedy": {"": greedy(left_out) if callable(greedy) else greedy} if greedy is not None else {},
        }
        for left_out in sets_left_out(pools["calibrated"].machines)
    }
    return Estimates(pools, {k: {m: w for m, w in v.items() if w} for k, v in found.items()})


def test_each_machine_is_judged_with_the_weights_found_without_it(pools):
    def weights(left_out):
        return GOOD if left_out == {"pump"} else POOR

    lomo = estimates(pools, weights).lomo(lambda _: ("greedy", ""))
    for machine, expected in (("pump", GOOD), ("fan", POOR)):
        cells = pools["calibrated"].without({*MACHINES} - {machine}).measured(expected)
        assert lomo.machines[machine].auc_source == pytest.approx(cells[0, 0])


def test_the_choice_without_a_machine_looks_at_pairs_alone(pools):
    """Weights that were found with the machine's help, or without it alone, have no say in whether they are chosen."""

    def weights(left_out):
        return np.array([0.5, 0, 0.5]) if len(left_out) == 2 else POOR

    found = estimates(pools, weights, single=OTHER, uniform=POOR)
    assert found.choose(frozenset(["fan"])) == ("greedy", "")
    assert found.choose() == SINGLE


def test_what_beats_the_simple_methods_clearly_is_delivered(pools):
    better = np.array([0.55, 0, 0.45])
    found = estimates(pools, better, single=OTHER, uniform=POOR)
    assert found.choose() == ("greedy", "")
    gain, error = found.gain(("greedy", ""))
    omega = [pools["calibrated"].omega(w) for w in (better, OTHER)]
    assert gain == pytest.approx(omega[0] - omega[1])
    assert gain > 1.645 * error


def test_uniform_has_to_beat_a_single_configuration(pools):
    assert estimates(pools, single=POOR).choose() == UNIFORM
    assert estimates(pools, uniform=POOR).choose() == SINGLE


def test_what_is_no_better_is_not_delivered(pools):
    assert estimates(pools, GOOD, uniform=POOR).choose() == SINGLE
    nearly = np.array([0.999, 0, 0.001])
    assert estimates(pools, nearly, uniform=POOR).choose() == SINGLE
    assert estimates(pools, EQUAL, single=POOR).choose() == UNIFORM


def test_one_machine_tests_nothing(pools):
    one = {scale: pool.without(["pump", "valve"]) for scale, pool in pools.items()}
    found = estimates(one, GOOD)
    assert sets_left_out(["fan"]) == [NOBODY]
    assert found.choose() == UNIFORM
    assert found.lomo(found.choose) is None
    assert found.gain(SINGLE) == (None, None)


def test_sets_that_are_left_out():
    sets = sets_left_out(list(MACHINES))
    assert len(sets) == len(set(sets)) == 1 + 3 + 3
    assert len(sets_left_out(["a", "b"])) == 3
