"""What holds of every detector, whatever its settings and estimators; and what these settings may be."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from scoring import neighbours
from scoring.banks import in_form
from scoring.detectors import DetectorSpec, KnnSpec, MahalanobisSpec
from scoring.errors import InputError
from scoring.mahalanobis import Mahalanobis
from scoring.neighbours import NearestNeighbours
from tests.scoring.detectors import DETECTORS, by_definition, fitted

READ = TypeAdapter(DetectorSpec).validate_python
both = pytest.mark.parametrize("standardised", [False, True])
each_density = pytest.mark.parametrize("density", ["none", "ratio", "difference"])


@st.composite
def embeddings(draw, source, target):
    """(n, bands, E) of different size in each dimension, and the domain of each, 0 or 1."""
    sizes = draw(st.integers(*source)), draw(st.integers(*target))
    rng, shape = np.random.default_rng(draw(st.integers(0, 999))), (draw(st.integers(1, 3)), draw(st.integers(1, 9)))
    X = rng.gamma(1, size=(sum(sizes), *shape)) * rng.gamma(1, size=shape[1]) + 3
    return X.astype(draw(st.sampled_from([np.float32, np.float64]))), np.repeat([0, 1], sizes)


@given(DETECTORS, embeddings((5, 14), (0, 6)), st.integers(0, 999))
@settings(max_examples=100, deadline=None)
def test_distances_are_those_of_the_definition(detector, case, seed):
    X, domain = case
    assume((np.bincount(domain) > 1).all() and X.shape[2] > 1)  # of one number there is no direction
    queries = np.random.default_rng(seed).normal(3, 2, size=(4, *X.shape[1:]))
    found = fitted(detector, X, domain).distances(in_form(queries, detector))
    np.testing.assert_allclose(found, by_definition(detector, X, domain, queries), rtol=1e-5, atol=1e-8)


@given(DETECTORS, embeddings((1, 14), (0, 6)))
@settings(max_examples=120, deadline=None)
def test_held_out_is_refitting_without_the_clip(detector, case):
    X, domain = case
    n, of_two = len(X), 1 in domain
    assume(n > 4 + 2 * of_two if isinstance(detector, MahalanobisSpec) else n > 1)  # of too few rounding is left
    held_out = fitted(detector, X, domain).held_out_distances()
    for i in range(n):
        kept = np.arange(n) != i
        there = [0] if detector.pools_domains else np.unique(domain[kept])
        expected = fitted(detector, X[kept], domain[kept]).distances(in_form(X[i : i + 1], detector))[0]
        np.testing.assert_allclose(held_out[i, there], expected, rtol=1e-6, atol=1e-10)
        assert np.isnan(np.delete(held_out[i], there)).all()


@both
@pytest.mark.parametrize(("n", "E"), [(60, 12), (30, 80)])
def test_so_it_is_of_ill_conditioned_embeddings(n, E, standardised):
    """Dimensions of very different size, an outlier in one of them, one that only a single clip has, a constant one."""
    rng = np.random.default_rng(3)
    X, y = rng.gamma(2, size=(n, E)) @ rng.normal(size=(E, E)) + 3, np.arange(n) % 3
    X *= 10.0 ** rng.integers(-3, 4, size=E)
    X[2, 1] += 30 * X[:, 1].std()
    X[:, 2], X[:, 3] = 0.1, 5
    X[4, 3] += 1
    held_out = Mahalanobis(standardised=standardised).fit(X, y).held_out_distances()
    for i in range(n):
        kept = np.arange(n) != i
        again = Mahalanobis(standardised=standardised).fit(X[kept], y[kept])
        np.testing.assert_allclose(held_out[i], again.distances(X[i : i + 1])[0], rtol=1e-6)
    np.testing.assert_array_equal(again.score_samples(X), -again.distances(X).min(axis=1))


def test_no_covariance_is_told():
    X = np.full((9, 3), 0.1)
    with pytest.raises(InputError, match="there is no covariance"):
        Mahalanobis().fit(X)
    X[4] += 1
    with pytest.raises(InputError, match="without that one"):
        Mahalanobis().fit(X).held_out_distances()


@each_density
def test_a_large_bank_is_searched_in_blocks(monkeypatch, density):
    bank, queries = np.random.default_rng(0).gamma(1, size=(2, 40, 2, 5))
    estimator = NearestNeighbours(3, density=density, density_weight="fitted").fit(bank)
    expected = estimator.score_samples(queries), estimator.held_out_score_samples()
    monkeypatch.setattr(neighbours, "CELLS", 7 * 40)
    estimator.fit(bank)
    np.testing.assert_allclose([estimator.score_samples(queries), estimator.held_out_score_samples()], expected)


@each_density
def test_copies_are_not_away_and_zeros_half_way(density):
    bank = np.random.default_rng(0).gamma(1, size=(2, 3)).repeat(6, axis=0)
    copies, lone = (NearestNeighbours(density=density).fit(X) for X in (bank, bank[:1]))
    np.testing.assert_allclose(copies.held_out_score_samples(), 0, atol=1e-12)
    np.testing.assert_allclose(lone.score_samples(bank[:1]), 0, atol=1e-12)
    assert lone.score_samples(np.zeros((1, 3))) == pytest.approx(-0.5)


def test_rounding_is_neither_a_distance_nor_a_density():
    far = np.array([[1e4, 0.0], [1e4, 7.0]])
    found = NearestNeighbours(metric="euclidean").fit(far).score_samples(far + np.array([0, 1e-3]))
    np.testing.assert_allclose(found, -1e-3, rtol=1e-6)
    same_everywhere = NearestNeighbours(1, "cosine", "difference", 4, "fitted").fit(np.eye(6))
    np.testing.assert_allclose(same_everywhere.score_samples(np.eye(6)), 0, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "estimator"),
    [
        ("knn", NearestNeighbours()),
        ("band_knn", NearestNeighbours()),
        ({"name": "knn", "k": 2, "metric": "euclidean"}, NearestNeighbours(2, "euclidean")),
        ({"name": "knn", "density": "ratio"}, NearestNeighbours(density="ratio", density_k=4)),
        ({"name": "knn", "density": "difference"}, NearestNeighbours(1, "cosine", "difference", 4, 1.0)),
        (
            {"name": "band_knn", "bands": "maximum", "density": {"name": "difference", "k": 3, "weight": "fitted"}},
            NearestNeighbours(1, "cosine", "difference", 3, "fitted", "maximum"),
        ),
        ("mahalanobis", Mahalanobis("ledoit_wolf", False)),
        ({"name": "mahalanobis", "shrinkage": 0.2, "standardised": True}, Mahalanobis(0.2, True)),
    ],
)
def test_settings_become_an_estimator(settings, estimator):
    spec = READ(settings)
    built = spec.build() if spec.name == "mahalanobis" else spec.build().estimator
    assert (type(built), built.get_params()) == (type(estimator), estimator.get_params())
    assert not spec.pools_domains


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "mahalanobis", "shrinkage": 0}, "greater than 0"),
        ({"name": "mahalanobis", "shrinkage": 1.1}, "less than or equal to 1"),
        ({"name": "mahalanobis", "banks": "pooled"}, "unknown key; allowed: name, shrinkage, standardised"),
        ({"name": "knn", "k": 0}, "greater than or equal to 1"),
        ({"name": "knn", "metrik": "cosine"}, "unknown key; did you mean metric.; allowed: banks, density, k, metric"),
        ({"name": "isolation"}, "'mahalanobis', 'knn', 'band_knn'"),
        ({"name": "knn", "density": {"name": "ratio", "weight": "fitted"}}, "unknown key"),
        ({"name": "band_knn", "density": {"name": "difference", "weight": -1}}, "greater than or equal to 0"),
        ({"name": "band_knn", "density": {"name": "difference", "weight": float("nan")}}, "finite number"),
        ({"name": "knn", "metrik": 1, "k": 0, "density": {"name": "ratio", "k": 0}}, "3 validation errors"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        READ(settings)


def test_settings_do_not_change_and_nothing_at_all_is_the_defaults():
    assert KnnSpec.model_validate(None) == KnnSpec()
    with pytest.raises(ValidationError, match="frozen"):
        KnnSpec().k = 2
    with pytest.raises(ValidationError, match="should be a mapping with keys among banks, density, k, metric, name"):
        KnnSpec.model_validate(3)
