import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.covariance import OAS, LedoitWolf

from scoring import mahalanobis
from scoring.errors import InputError
from scoring.mahalanobis import Mahalanobis

RULES = ["ledoit_wolf", "oas", 0.1, 1.0]


def skewed(seed, n, E, groups):
    """Correlated embeddings far from the origin, and the group of each; the last group has one clip."""
    rng = np.random.default_rng(seed)
    X = rng.gamma(2, size=(n, E)) @ rng.normal(size=(E, E)) + 3
    y = np.arange(n) % groups
    y[-1] = groups
    return X, y


@pytest.mark.parametrize(("rule", "estimator"), [("ledoit_wolf", LedoitWolf), ("oas", OAS)])
@pytest.mark.parametrize("E", [1, 6, 50])
def test_the_covariance_is_scikit_learns(rule, estimator, E):
    X, y = skewed(0, 40, E, 2)
    found = Mahalanobis(rule).fit(X, y)
    means = np.stack([X[y == g].mean(axis=0) for g in range(3)])
    expected = estimator(assume_centered=True).fit(X - means[y]).covariance_
    np.testing.assert_allclose(found.covariance_, expected, rtol=1e-7, atol=1e-8 * np.trace(expected))


@pytest.mark.parametrize("E", [4, 50])
def test_distances_are_those_of_the_covariance(E):
    X, y = skewed(1, 30, E, 2)
    fitted = Mahalanobis().fit(X, y)
    other = np.random.default_rng(2).normal(size=(7, E)) * 10
    for g, mean in enumerate(fitted.means_):
        difference = other - mean
        expected = np.sqrt(np.sum(difference @ np.linalg.inv(fitted.covariance_) * difference, axis=1))
        np.testing.assert_allclose(fitted.distances(other)[:, g], expected)
    np.testing.assert_array_equal(fitted.score_samples(other), -fitted.distances(other).min(axis=1))


@given(st.integers(0, 99), st.integers(9, 20), st.integers(1, 30), st.integers(1, 3), st.sampled_from(RULES))
@settings(max_examples=40, deadline=None)
def test_leave_one_out_is_refitting_without_the_clip(seed, n, E, groups, rule):
    X, y = skewed(seed, n, E, groups)
    fitted = Mahalanobis(rule).fit(X, y)
    held_out = fitted.held_out_distances()
    for i in range(n):
        kept = np.arange(n) != i
        again = Mahalanobis(rule).fit(X[kept], y[kept])
        columns = np.searchsorted(fitted.groups_, again.groups_)
        np.testing.assert_allclose(held_out[i, columns], again.distances(X[i : i + 1])[0], rtol=1e-7)
        assert np.isnan(held_out[i]).sum() == len(fitted.groups_) - len(again.groups_)


def test_blocks_change_nothing(monkeypatch):
    X, y = skewed(3, 60, 8, 2)
    whole = Mahalanobis().fit(X, y)
    expected = whole.distances(X), whole.held_out_distances()
    monkeypatch.setattr(mahalanobis, "BLOCK", 7)
    parts = Mahalanobis().fit(X, y)
    np.testing.assert_allclose(parts.distances(X), expected[0], atol=1e-9)
    np.testing.assert_allclose(parts.held_out_distances(), expected[1])


def test_embeddings_that_do_not_vary():
    with pytest.raises(InputError, match="there is no covariance"):
        Mahalanobis().fit(np.full((9, 3), 0.1))
    X = np.full((9, 3), 0.1)
    X[4] += 1
    with pytest.raises(InputError, match="without that one"):
        Mahalanobis().fit(X).held_out_distances()


def test_fewer_dimensions_than_they_seem():
    """Two equal columns make the sample covariance singular; the shrunk one is not."""
    X, _ = skewed(4, 30, 3, 1)
    fitted = Mahalanobis().fit(np.column_stack([X, X]))
    assert np.isfinite(fitted.held_out_distances()).all()
    assert np.linalg.cond(fitted.covariance_) < 1e8


def test_scikit_learns_tools_can_handle_it():
    X, _ = skewed(5, 30, 3, 1)
    estimator = Mahalanobis(shrinkage=0.3)
    assert clone(estimator).get_params() == {"shrinkage": 0.3}
    assert clone(estimator).fit(X).score_samples(X).shape == (30,)
