import numpy as np
import pytest
from sklearn.base import clone
from sklearn.covariance import LedoitWolf

from scoring.errors import InputError
from scoring.mahalanobis import Mahalanobis


def skewed(seed, n, E, groups):
    """Correlated embeddings far from the origin, and the group of each; the last group has one clip."""
    rng = np.random.default_rng(seed)
    X = rng.gamma(2, size=(n, E)) @ rng.normal(size=(E, E)) + 3
    y = np.arange(n) % groups
    y[-1] = groups
    return X, y


@pytest.mark.parametrize("standardised", [False, True])
@pytest.mark.parametrize("E", [1, 6, 50])
def test_distances_are_those_of_scikit_learns_covariance(E, standardised):
    X, y = skewed(0, 40, E, 2)
    other = np.random.default_rng(2).normal(size=(7, E)) * 10
    fitted = Mahalanobis(standardised=standardised).fit(X, y)
    unit = X.std(axis=0) if standardised else 1
    means = np.stack([X[y == g].mean(axis=0) for g in range(3)])
    precision = LedoitWolf(assume_centered=True).fit((X - means[y]) / unit).precision_
    for g, mean in enumerate(means):
        z = (other - mean) / unit
        np.testing.assert_allclose(fitted.distances(other)[:, g], np.sqrt(np.sum(z @ precision * z, axis=1)))
    np.testing.assert_array_equal(fitted.score_samples(other), -fitted.distances(other).min(axis=1))


@pytest.mark.parametrize("standardised", [False, True])
@pytest.mark.parametrize(("n", "E"), [(60, 12), (30, 80)])
def test_leave_one_out_of_ill_conditioned_embeddings(n, E, standardised):
    """Dimensions of very different size, an outlier in one of them, one that only a single clip has, a constant one."""
    X, y = skewed(3, n, E, 3)
    X *= 10.0 ** np.random.default_rng(4).integers(-3, 4, size=E)
    X[2, 1] += 30 * X[:, 1].std()
    X[:, 2], X[:, 3] = 0.1, 5
    X[4, 3] += 1
    fitted = Mahalanobis(standardised=standardised).fit(X, y)
    held_out = fitted.held_out_distances()
    for i in range(n - 1):
        kept = np.arange(n) != i
        again = Mahalanobis(standardised=standardised).fit(X[kept], y[kept])
        np.testing.assert_allclose(held_out[i], again.distances(X[i : i + 1])[0], rtol=1e-6)


def test_standardised_distances_know_no_unit():
    rng = np.random.default_rng(7)
    X, y = rng.normal(size=(40, 5)), np.arange(40) % 2
    unit = np.array([1, 1000, 0.01, 3, 1.0])
    plain, scaled = (Mahalanobis(standardised=True).fit(Z, y) for Z in (X, X * unit))
    np.testing.assert_allclose(plain.distances(X), scaled.distances(X * unit))


def test_embeddings_that_do_not_vary():
    with pytest.raises(InputError, match="there is no covariance"):
        Mahalanobis().fit(np.full((9, 3), 0.1))
    X = np.full((9, 3), 0.1)
    X[4] += 1
    with pytest.raises(InputError, match="without that one"):
        Mahalanobis().fit(X).held_out_distances()


def test_scikit_learns_tools_can_handle_it():
    X, _ = skewed(5, 30, 3, 1)
    estimator = Mahalanobis(shrinkage=0.3)
    assert clone(estimator).get_params() == {"shrinkage": 0.3, "standardised": False}
    assert clone(estimator).fit(np.column_stack([X, X])).score_samples(np.column_stack([X, X])).shape == (30,)
