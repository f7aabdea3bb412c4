import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from scoring.detectors import DetectorSpec, KnnSpec, MahalanobisSpec
from scoring.mahalanobis import Mahalanobis

READ = TypeAdapter(DetectorSpec).validate_python
DOMAIN = np.array(["source"] * 30 + ["target"] * 6, object)
NO_ATTRIBUTES = np.full(36, "", object)


@pytest.fixture
def normals():
    return np.random.default_rng(0).normal(size=(36, 4)) + 6.0 * (DOMAIN == "target")[:, None]


@pytest.mark.parametrize("name", ["mahalanobis", "knn", "kmeans", "gmm"])
def test_every_detector_has_a_distance_to_each_domain(name, normals):
    fitted = READ({"name": name}).build().fit(normals, DOMAIN, NO_ATTRIBUTES)
    assert fitted.domains_ == ["source", "target"]
    assert fitted.distances(normals[:5]).shape == (5, 2)
    held_out = fitted.held_out_distances()
    assert np.median(held_out[:30, 0]) < np.median(held_out[:30, 1])


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "mahalanobis", "shrinkage": 0},
        {"name": "mahalanobis", "shrinkage": "most"},
        {"name": "mahalanobis", "smote": 0.2},
        {"name": "knn", "k": 0},
        {"name": "knn", "calibration": "test"},
        {"name": "knn", "softness": float("nan")},
        {"name": "isolation"},
        {"name": "knn", "banks": "pooled", "smote": 0.2},
        {"name": "knn", "density": {"name": "ratio", "weight": "fitted"}},
        {"name": "band_knn", "density": {"name": "difference", "weight": -1}},
    ],
)
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ValidationError):
        READ(settings)


def test_a_domain_with_enough_clips_has_its_own_covariance(normals):
    fitted = MahalanobisSpec(covariance="domain").build().fit(normals, DOMAIN, NO_ATTRIBUTES)
    pooled = MahalanobisSpec().build().fit(normals, DOMAIN, NO_ATTRIBUTES)
    own = Mahalanobis().fit(normals[:30])
    np.testing.assert_allclose(fitted.distances(normals)[:, 0], own.distances(normals)[:, 0])
    np.testing.assert_allclose(fitted.held_out_distances()[:30, 0], own.held_out_distances()[:, 0])
    wide = np.tile(normals[:, :1], 40) + np.random.default_rng(1).normal(size=(36, 40))
    few = MahalanobisSpec(covariance="domain").build().fit(wide, DOMAIN, NO_ATTRIBUTES)
    np.testing.assert_array_equal(
        few.distances(wide), MahalanobisSpec().build().fit(wide, DOMAIN, NO_ATTRIBUTES).distances(wide)
    )
    assert not np.allclose(fitted.distances(normals)[:, 0], pooled.distances(normals)[:, 0])


def test_the_nearest_combination_of_attributes_counts():
    rng = np.random.default_rng(2)
    attributes = np.array(list("ab" * 18), object)
    X = rng.normal(size=(36, 3)) + 20.0 * (attributes == "b")[:, None]
    between = np.full((1, 3), 10.0)
    one = MahalanobisSpec().build().fit(X, DOMAIN, attributes)
    each = MahalanobisSpec(means="attributes").build().fit(X, DOMAIN, attributes)
    assert one.distances(between)[0, 0] < np.median(one.held_out_distances()[:30, 0])
    assert each.distances(between)[0, 0] > each.held_out_distances()[:30, 0].max()


def test_synthetic_clips_are_references_and_nothing_else(normals):
    plain, filled = (KnnSpec(smote=s).build().fit(normals, DOMAIN, NO_ATTRIBUTES) for s in (0, 0.8))
    assert filled.held_out_distances().shape == (36, 2)
    new = np.random.default_rng(3).normal(size=(50, 4)) + 6
    assert (filled.distances(new) <= plain.distances(new) + 1e-12).all()
    assert (filled.distances(new)[:, 1] < plain.distances(new)[:, 1]).any()
    np.testing.assert_array_equal(filled.distances(new)[:, 0], plain.distances(new)[:, 0])
