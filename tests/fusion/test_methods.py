import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

import fusion.methods
from fusion.hierarchy import configurations_of, parts_of
from fusion.methods import METHODS, OPEN, best_single, greedy, softmax, to_point, to_weights, tpe
from tests.fusion.pools import TREE, labelled, make_pool, rng

UNIFORM = [0.25, 0.25, 0.5]


@pytest.fixture(scope="module")
def scores():
    return labelled(make_pool())


@pytest.mark.parametrize("method", METHODS)
def test_weights_are_on_the_simplex_and_depend_on_the_seed_alone(scores, method):
    """The strongest regularisation, which is nearest to uniform weights, comes first: of equals it is taken."""
    configurations, parts = configurations_of(scores, TREE), parts_of(TREE)
    found, again = (METHODS[method].search(configurations, parts, rng(3)) for _ in range(2))
    for strength, weights in found.items():
        assert weights.sum() == pytest.approx(1)
        assert weights.min() >= 0
        assert np.array_equal(weights, again[strength])
    distances = [np.abs(weights - UNIFORM).sum() for weights in found.values()]
    assert distances == sorted(distances)


@pytest.mark.parametrize("method", ["greedy", "tpe", "evolution"])
def test_searches_beat_every_member_and_leave_the_useless_one(scores, method):
    configurations = configurations_of(scores, TREE)
    found = METHODS[method].search(configurations, parts_of(TREE), rng())
    free = found["shrinkage 0.0"]
    assert configurations.omega(free) > configurations.omega(np.eye(3)).max()
    assert free[1] < 0.15
    assert found["shrinkage 0.75"] == pytest.approx(0.25 * free + 0.75 * np.array(UNIFORM))


def test_softmax_goes_from_the_best_to_uniform(scores):
    omega = scores.omega(np.eye(4))
    assert best_single(scores, rng()).tolist() == (omega == omega.max()).tolist()
    assert softmax(scores, rng(), 1e-3) == pytest.approx(best_single(scores, rng()))
    assert softmax(scores, rng(), 2) == pytest.approx(np.exp(omega / 2) / np.exp(omega / 2).sum())


def test_greedy_is_the_best_round_of_adding_who_helps_most(scores):
    """With members that know nothing, whose best round is seldom the last."""
    for seed in range(4):
        noise, chosen, rounds = scores.with_values(rng(seed).normal(size=(5, scores.values.shape[1]))), [], []
        for _ in range(20):
            tried = [np.bincount([*chosen, member], minlength=5) for member in range(5)]
            omega = [float(noise.omega(counts / counts.sum())) for counts in tried]
            chosen.append(int(np.argmax(omega)))
            rounds.append(max(omega))
        assert noise.omega(greedy(noise, rng())) == pytest.approx(max(rounds))


def test_tpe_is_never_below_its_starts_and_improves_a_poor_one(scores, monkeypatch):
    assert scores.omega(tpe(scores, rng())) >= scores.omega(greedy(scores, rng()))
    poor = np.array([0.0, 0.0, 1.0, 0.0])
    monkeypatch.setattr(fusion.methods, "STARTS", (lambda scores, rng: poor,))
    assert scores.omega(tpe(scores, rng())) > scores.omega(poor) + 5


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_every_point_is_on_the_simplex_and_comes_back(point):
    weights = to_weights(np.array(point))
    assert weights.min() >= 0
    assert np.isclose(weights.sum(), 1)
    again = to_point(weights)
    assert again.min() >= 0
    assert again.max() <= 1
    np.testing.assert_allclose(to_weights(again), weights, atol=1e-9)


def test_open_members_are_uniform_on_their_simplex():
    """Of Dirichlet(1) with three members each weight is Beta(1, 2), whatever gates are."""
    points = rng().random((20_000, 3))
    weights, all_open = to_weights(points), (points < OPEN).all(axis=1)
    assert np.isclose(all_open.mean(), OPEN**3, atol=0.01)
    assert kstest(weights[all_open, 0], "beta", (1, 2)).pvalue > 0.01
    assert (weights[:, 0] == 0).mean() > 0.2
