import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.clusters import KMeansDistance
from scoring.crossfit import FOLDS, fit_augmented, held_out_scores, smote
from scoring.neighbours import BandNeighbours, NearestNeighbours


@given(st.integers(2, 12), st.integers(0, 40), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_synthetic_clips_lie_between_a_clip_and_one_of_its_neighbours(n, count, k):
    X = np.random.default_rng(n).normal(size=(n, 3))
    made = smote(X, count, k)
    assert made.shape == (count, 3)
    near = np.argsort(np.linalg.norm(X[:, None] - X, axis=2), axis=1)[:, 1 : k + 1]
    for row, start in zip(made, np.arange(count) % n, strict=True):
        ways = X[near[start]] - X[start]
        along = (ways @ (row - X[start])) / np.sum(ways**2, axis=1)
        off = np.linalg.norm(X[start] + along[:, None] * ways - row, axis=1)
        assert ((off < 1e-9) & (along >= 0) & (along <= 1)).any()


def test_a_lone_clip_has_no_synthetic_ones():
    assert smote(np.ones((1, 3)), 5).shape == (0, 3)
    assert np.isnan(held_out_scores(NearestNeighbours(), np.ones((1, 3)), 5, 2)).all()


@pytest.mark.parametrize("estimator", [NearestNeighbours(2), KMeansDistance(4), BandNeighbours()], ids=str)
@pytest.mark.parametrize("synthetic", [0, 25])
def test_ten_clips_are_left_out_one_by_one(estimator, synthetic):
    """None of the synthetic clips that a clip is held against has an end in it."""
    X = np.random.default_rng(0).normal(size=(FOLDS, 2, 4))
    X = X if isinstance(estimator, BandNeighbours) else X[:, 0]
    found = held_out_scores(fit_augmented(estimator, X, synthetic, 2), X, synthetic, 2)
    for i in range(FOLDS):
        others = np.delete(X, i, axis=0)
        again = fit_augmented(estimator, others, synthetic, 2).score_samples(X[i : i + 1])
        np.testing.assert_allclose(found[i], again[0], rtol=1e-9)


def test_more_clips_are_left_out_by_folds():
    X = np.random.default_rng(1).normal(size=(34, 3))
    found = held_out_scores(KMeansDistance(3), X, 0, 2)
    moved = X.copy()
    moved[4::FOLDS] += 5
    moved[14] = X[14]
    assert held_out_scores(KMeansDistance(3), moved, 0, 2)[14] == found[14]
