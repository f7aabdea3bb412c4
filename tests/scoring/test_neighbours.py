import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.neighbors import NearestNeighbors

from scoring import neighbours
from scoring.neighbours import BandNeighbours, NearestNeighbours

METRICS, DENSITIES = st.sampled_from(["cosine", "euclidean"]), st.sampled_from(["none", "ratio", "difference"])


def embeddings(seed, n, *shape):
    return np.random.default_rng(seed).gamma(1, size=(n, *shape)) + 3


def refitted(estimator, X):
    """The scores of clips by what was fitted to all the others."""
    fits = [(clone(estimator).fit(np.delete(X, i, axis=0)), X[i : i + 1]) for i in range(len(X))]
    return np.concatenate([fitted.score_samples(clip) for fitted, clip in fits])


@given(st.integers(0, 99), st.integers(1, 5), METRICS, st.sampled_from([np.float32, np.float64]))
@settings(max_examples=20, deadline=None)
def test_the_neighbours_are_scikit_learns(seed, k, metric, dtype):
    bank, queries = embeddings(seed, 20, 6).astype(dtype), embeddings(seed + 100, 9, 6).astype(dtype)
    reference = NearestNeighbors(n_neighbors=k, metric=metric, algorithm="brute").fit(bank.astype(np.float64))
    expected = -reference.kneighbors(queries.astype(np.float64))[0].mean(axis=1)
    np.testing.assert_allclose(NearestNeighbours(k, metric).fit(bank).score_samples(queries), expected, rtol=1e-5)


@given(st.integers(0, 99), st.integers(2, 12), st.integers(1, 4), METRICS, DENSITIES, st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_leave_one_out_is_refitting_without_the_clip(seed, n, k, metric, density, density_k):
    X, estimator = embeddings(seed, n, 5), NearestNeighbours(k, metric, density, density_k)
    found = clone(estimator).fit(X).held_out_score_samples()
    np.testing.assert_allclose(found, refitted(estimator, X), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("density", ["none", "ratio", "difference"])
def test_density_by_its_definition(density):
    bank, queries = embeddings(0, 15, 4), embeddings(1, 6, 4)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, queries)]
    among, to = 1 - unit[0] @ unit[0].T, 1 - unit[1] @ unit[0].T
    usual = np.sort(among + 9 * np.eye(15), axis=1)[:, :3].mean(axis=1)
    relative = {"none": to, "ratio": to / usual, "difference": to - usual}[density]
    found = NearestNeighbours(2, density=density, density_k=3).fit(bank).score_samples(queries)
    np.testing.assert_allclose(found, -np.sort(relative, axis=1)[:, :2].mean(axis=1), rtol=1e-9)


@pytest.mark.parametrize("density", ["none", "ratio"])
def test_blocks_change_nothing(monkeypatch, density):
    bank, queries = embeddings(0, 40, 5), embeddings(1, 30, 5)
    whole = NearestNeighbours(3, density=density).fit(bank)
    expected = whole.score_samples(queries), whole.held_out_score_samples()
    monkeypatch.setattr(neighbours, "BLOCK", 7)
    parts = NearestNeighbours(3, density=density).fit(bank)
    np.testing.assert_allclose(parts.score_samples(queries), expected[0])
    np.testing.assert_allclose(parts.held_out_score_samples(), expected[1])


def test_a_small_distance_far_from_the_origin_is_not_lost_in_single_precision():
    bank = np.array([[1e4, 0.0], [1e4, 7.0]])
    found = NearestNeighbours(metric="euclidean").fit(bank).score_samples(bank + np.array([0, 1e-3]))
    np.testing.assert_allclose(found, -1e-3, rtol=1e-6)


def test_copies_and_lone_clips():
    bank = np.repeat(embeddings(0, 2, 3), 6, axis=0)
    for density in ("none", "ratio", "difference"):
        copies = NearestNeighbours(density=density).fit(bank)
        np.testing.assert_allclose(copies.held_out_score_samples(), 0, atol=1e-12)
        lone = NearestNeighbours(density=density).fit(bank[:1])
        assert lone.score_samples(bank[:1]) == pytest.approx(0, abs=1e-12)
    assert NearestNeighbours().fit(bank).score_samples(np.zeros((1, 3))) == pytest.approx(-0.5)


@pytest.mark.parametrize("density", ["none", "difference"])
def test_bands_are_averaged_and_left_out_together(density):
    bank, queries = embeddings(0, 9, 4, 3), embeddings(1, 5, 4, 3)
    estimator = BandNeighbours(1, density)
    single = [NearestNeighbours(1, density=density).fit(bank[:, b]).score_samples(queries[:, b]) for b in range(4)]
    np.testing.assert_allclose(clone(estimator).fit(bank).score_samples(queries), np.mean(single, axis=0) / 2)
    found = clone(estimator).fit(bank).held_out_score_samples()
    np.testing.assert_allclose(found, refitted(estimator, bank), rtol=1e-9, atol=1e-14)
