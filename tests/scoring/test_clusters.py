import numpy as np
import pytest
from sklearn.base import clone

from scoring.clusters import KMeansDistance, MixtureDensity

ESTIMATORS = [KMeansDistance(3), KMeansDistance(3, "euclidean"), MixtureDensity(3)]


@pytest.fixture
def normals():
    """Three clusters of clips."""
    rng = np.random.default_rng(0)
    return np.repeat(np.eye(5)[:3] * 10 + 1, 30, axis=0) + rng.normal(0, 0.3, (90, 5))


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_what_lies_off_the_clusters_is_abnormal(estimator, normals):
    fitted = clone(estimator).fit(normals)
    off = np.array([[1.0, 1, 1, 1, 11], [6, 6, 1, 1, 1]])
    assert fitted.score_samples(off).max() < fitted.score_samples(normals).min()
    again = clone(estimator).fit(normals)
    np.testing.assert_array_equal(fitted.score_samples(off), again.score_samples(off))


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_fewer_clips_than_clusters_and_copies(estimator):
    for X in (np.ones((1, 4)), np.ones((5, 4)), np.eye(4)[[0, 0, 1]]):
        assert np.isfinite(clone(estimator).fit(X).score_samples(np.eye(4))).all()


def test_enough_centres_are_the_clips_themselves():
    X = np.random.default_rng(1).normal(size=(10, 3))
    np.testing.assert_allclose(KMeansDistance(16, "euclidean").fit(X).score_samples(X), 0, atol=1e-7)


def test_the_likelihood_of_one_component():
    X = np.random.default_rng(2).normal(size=(15, 2)) * [1, 5]
    variance = X.var(axis=0) + 0.1 * X.var(axis=0).mean()
    expected = -0.5 * np.sum((X - X.mean(axis=0)) ** 2 / variance + np.log(2 * np.pi * variance), axis=1)
    np.testing.assert_allclose(MixtureDensity(4).fit(X).score_samples(X), expected)
