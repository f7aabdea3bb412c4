import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.metrics.pairwise import cosine_distances
from sklearn.neighbors import NearestNeighbors

from scoring import neighbours
from scoring.neighbours import NearestNeighbours


def embeddings(seed, n, *shape):
    return np.random.default_rng(seed).gamma(1, size=(n, *shape)) + 3


@given(
    st.integers(0, 99),
    st.integers(1, 5),
    st.sampled_from(["cosine", "euclidean"]),
    st.sampled_from([np.float32, np.float64]),
)
@settings(max_examples=20, deadline=None)
def test_the_neighbours_are_scikit_learns(seed, k, metric, dtype):
    bank, queries = embeddings(seed, 20, 6).astype(dtype), embeddings(seed + 100, 9, 6).astype(dtype)
    reference = NearestNeighbors(n_neighbors=k, metric=metric, algorithm="brute").fit(bank.astype(np.float64))
    expected = -reference.kneighbors(queries.astype(np.float64))[0].mean(axis=1)
    np.testing.assert_allclose(NearestNeighbours(k, metric).fit(bank).score_samples(queries), expected, rtol=1e-5)


@pytest.mark.parametrize("density", ["none", "ratio", "difference"])
def test_density_by_its_definition(density):
    bank, queries = embeddings(0, 15, 4), embeddings(1, 6, 4)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, queries)]
    among, to = 1 - unit[0] @ unit[0].T, 1 - unit[1] @ unit[0].T
    usual = np.sort(among + 9 * np.eye(15), axis=1)[:, :3].mean(axis=1)
    relative = {"none": to, "ratio": to / usual, "difference": to - usual}[density]
    found = NearestNeighbours(2, density=density, density_k=3).fit(bank).score_samples(queries)
    np.testing.assert_allclose(found, -np.sort(relative, axis=1)[:, :2].mean(axis=1), rtol=1e-9)


@pytest.mark.parametrize("density", ["none", "ratio", "difference"])
def test_a_large_bank_is_searched_in_blocks(monkeypatch, density):
    bank, queries = embeddings(0, 40, 2, 5), embeddings(1, 30, 2, 5)
    estimator = NearestNeighbours(3, density=density, density_weight="fitted")
    expected = estimator.fit(bank).score_samples(queries), estimator.held_out_score_samples()
    monkeypatch.setattr(neighbours, "CELLS", 7 * 40)
    estimator.fit(bank)
    np.testing.assert_allclose(estimator.score_samples(queries), expected[0])
    np.testing.assert_allclose(estimator.held_out_score_samples(), expected[1])


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


def recipe(bank, queries, density_k=4):
    """Distances (m, bands) of queries (m, bands, E) by the recipe of a pooled bank, in loops over scikit-learn."""
    result = np.empty(queries.shape[:2])
    for f in range(bank.shape[1]):
        among, to = cosine_distances(bank[:, f]), cosine_distances(queries[:, f], bank[:, f])
        u, v, density = np.empty(len(bank)), np.empty(len(bank)), np.empty(len(bank))
        np.fill_diagonal(among, np.inf)
        for i, row in enumerate(among):
            density[i] = np.sort(row)[:density_k].mean()
        for i, row in enumerate(among):
            u[i], v[i] = row.min(), density[row.argmin()]
        covariance = np.cov(u, v, ddof=0)
        weight = covariance[0, 1] / covariance[1, 1] if covariance[1, 1] > 1e-12 else 0.0
        result[:, f] = [min(d - weight * b for d, b in zip(row, density, strict=True)) for row in to]
    return result


def test_the_recipe_of_a_pooled_bank_by_its_definition():
    bank, queries = embeddings(0, 60, 8, 24), embeddings(1, 20, 8, 24)
    fitted = NearestNeighbours(density="difference", density_k=4, density_weight="fitted").fit(bank)
    np.testing.assert_allclose(fitted.score_samples(queries), -recipe(bank, queries).mean(axis=1), rtol=1e-6)
    held_out = [recipe(np.delete(bank, i, axis=0), bank[i : i + 1])[0].mean() for i in range(0, 60, 7)]
    np.testing.assert_allclose(fitted.held_out_score_samples()[::7], np.negative(held_out), rtol=1e-6)


def test_a_fitted_weight_makes_leave_one_out_scores_vary_least():
    rng = np.random.default_rng(5)
    bank = np.concatenate([rng.normal(scale=s, size=(40, 3)) + c for s, c in ((0.1, 5), (1, 50), (3, 100))])

    def spread(weight):
        (band,) = NearestNeighbours(1, "euclidean", "difference", 4, weight).fit(bank)._bands
        return np.var(band.near[:, 0] - band.weight * band.density[band.who[:, 0]])

    assert spread("fitted") < min(spread(w) for w in np.arange(0, 1.5, 0.05)) + 1e-12
    assert spread("fitted") < 0.9 * spread(0.0)


def test_a_density_that_is_the_same_everywhere_has_no_weight():
    corners = np.eye(6)
    fitted = NearestNeighbours(1, "cosine", "difference", 4, "fitted").fit(corners)
    np.testing.assert_allclose(fitted.score_samples(corners), 0, atol=1e-12)


@pytest.mark.parametrize("bands", ["mean", "maximum"])
@pytest.mark.parametrize("density", ["none", "difference"])
def test_bands_are_judged_each_by_itself(density, bands):
    bank, queries = embeddings(0, 9, 4, 3), embeddings(1, 5, 4, 3)
    single = [NearestNeighbours(density=density).fit(bank[:, b]).score_samples(queries[:, b]) for b in range(4)]
    expected = np.mean(single, axis=0) if bands == "mean" else np.min(single, axis=0)
    found = clone(NearestNeighbours(density=density, bands=bands)).fit(bank).score_samples(queries)
    np.testing.assert_allclose(found, expected)
