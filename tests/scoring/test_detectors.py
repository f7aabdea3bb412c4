import pytest
from pydantic import TypeAdapter, ValidationError

from scoring.detectors import DetectorSpec
from scoring.neighbours import NearestNeighbours

READ = TypeAdapter(DetectorSpec).validate_python


@pytest.mark.parametrize(
    ("settings", "estimator"),
    [
        ("knn", NearestNeighbours()),
        ({"name": "knn", "k": 2, "metric": "euclidean"}, NearestNeighbours(2, "euclidean")),
        ({"name": "knn", "density": "ratio"}, NearestNeighbours(density="ratio")),
        ("band_knn", NearestNeighbours()),
        (
            {"name": "band_knn", "bands": "maximum", "density": {"name": "difference", "k": 3, "weight": "fitted"}},
            NearestNeighbours(1, "cosine", "difference", 3, "fitted", "maximum"),
        ),
    ],
)
def test_two_names_of_one_estimator(settings, estimator):
    assert READ(settings).estimator().get_params() == estimator.get_params()


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "mahalanobis", "shrinkage": 0},
        {"name": "mahalanobis", "shrinkage": "most"},
        {"name": "mahalanobis", "banks": "pooled"},
        {"name": "knn", "k": 0},
        {"name": "knn", "bands": "maximum"},
        {"name": "band_knn", "metric": "euclidean"},
        {"name": "isolation"},
        {"name": "knn", "density": {"name": "ratio", "weight": "fitted"}},
        {"name": "band_knn", "density": {"name": "difference", "weight": -1}},
        {"name": "band_knn", "density": {"name": "difference", "weight": float("nan")}},
    ],
)
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ValidationError):
        READ(settings)
