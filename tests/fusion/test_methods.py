import numpy as np
import pytest

from fusion.hierarchy import configurations_of, parts_of
from fusion.methods import METHODS, best_single, greedy, softmax
from fusion.tpe import tpe
from tests.fusion.pools import TREE, labelled, make_pool, rng


@pytest.fixture(scope="module")
def scores():
    return labelled(make_pool())


@pytest.mark.parametrize("method", METHODS)
def test_weights_are_on_the_simplex_and_depend_on_the_seed_alone(scores, method):
    configurations, parts = configurations_of(scores, TREE), parts_of(TREE)
    found, again = (METHODS[method].search(configurations, parts, rng(3)) for _ in range(2))
    for strength, weights in found.items():
        assert weights.shape == (3,)
        assert weights.sum() == pytest.approx(1)
        assert weights.min() >= 0
        assert np.array_equal(weights, again[strength])


@pytest.mark.parametrize("method", ["greedy", "tpe", "evolution"])
def test_searches_beat_every_member_and_leave_the_useless_one(scores, method):
    configurations = configurations_of(scores, TREE)
    found = METHODS[method].search(configurations, parts_of(TREE), rng())
    free, drawn = found["shrinkage 0.0"], found["shrinkage 0.75"]
    assert configurations.omega(free) > configurations.omega(np.eye(3)).max()
    assert free[1] < 0.15
    assert np.abs(drawn - [0.25, 0.25, 0.5]).sum() < np.abs(free - [0.25, 0.25, 0.5]).sum()


def test_best_single_takes_the_best(scores):
    assert best_single(scores, rng()).argmax() == scores.omega(np.eye(4)).argmax()


def test_softmax_goes_from_the_best_to_uniform(scores):
    assert softmax(scores, rng(), 1e-3) == pytest.approx(best_single(scores, rng()))
    assert softmax(scores, rng(), 1e6) == pytest.approx(np.full(4, 0.25), abs=1e-3)


def test_tpe_is_never_below_its_starts_and_improves_a_poor_one(scores):
    best = greedy(scores, rng())
    assert scores.omega(tpe(scores, [best], rng())) >= scores.omega(best)
    poor = np.array([0.0, 0.0, 1.0, 0.0])
    assert scores.omega(tpe(scores, [poor], rng())) > scores.omega(poor) + 5
