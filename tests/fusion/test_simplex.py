import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from fusion.simplex import OPEN, to_point, to_weights


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_every_point_is_on_the_simplex_and_comes_back(point):
    weights = to_weights(np.array(point))
    assert weights.min() >= 0
    assert np.isclose(weights.sum(), 1)
    np.testing.assert_allclose(to_weights(to_point(weights)), weights, atol=1e-9)


def test_open_members_are_uniform_on_their_simplex():
    """Of Dirichlet(1) with three members each weight is Beta(1, 2), whatever gates are."""
    points = np.random.default_rng(0).random((20_000, 3))
    weights = to_weights(points)
    all_open = (points < OPEN).all(axis=1)
    assert np.isclose(all_open.mean(), OPEN**3, atol=0.01)
    assert kstest(weights[all_open, 0], "beta", (1, 2)).pvalue > 0.01
    assert (weights[:, 0] == 0).mean() > 0.2
