"""Detectors' settings, each a class with an entry in `DetectorSpec`; `build` makes the detector (`scoring.domains`).

scikit-learn, which takes a second to load, is imported by `build` alone: a plan needs only the settings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from scoring.calibration import Method
from scoring.settings import DensityWeight, Metric, Settings, by_name

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator

    from scoring.domains import Detector

# Raised by hand when the same embeddings come to give other scores; every table is scored once more.
SCORING_VERSION = 2


class _DetectorSettings(Settings):
    """What all detectors have.

    softness: 0 scores by the nearest domain; more lets the others have a say, in standard deviations of a distance
    calibration: how scores become comparable, see `scoring.calibration`
    """

    uses_bands: ClassVar[bool] = False

    softness: float = Field(0.0, ge=0)
    calibration: Method = "location_scale"

    @property
    def uses_attributes(self) -> bool:
        """Whether the attributes of the training clips are needed."""
        return False


class MahalanobisSpec(_DetectorSettings):
    """Mahalanobis distance to the mean of each domain; see `scoring.domains`.

    standardised: each dimension is divided by its standard deviation first
    """

    name: Literal["mahalanobis"] = "mahalanobis"
    shrinkage: Literal["ledoit_wolf", "oas"] | Annotated[float, Field(gt=0, le=1)] = "ledoit_wolf"
    covariance: Literal["pooled", "domain"] = "pooled"
    means: Literal["domain", "attributes"] = "domain"
    standardised: bool = False

    @property
    def uses_attributes(self) -> bool:
        """Whether the attributes of the training clips are needed."""
        return self.means == "attributes"

    def build(self) -> Detector:
        """An unfitted detector."""
        from scoring.domains import MahalanobisDetector

        return MahalanobisDetector(self.shrinkage, self.covariance, self.means, self.standardised)


class BankSettings(_DetectorSettings):
    """Of detectors with a bank for each domain, or one pooled bank; see `scoring.domains`."""

    banks: Literal["separate", "pooled"] = "separate"
    smote: float = Field(0.0, ge=0, le=1)
    smote_k: int = Field(2, ge=1)

    @model_validator(mode="after")
    def _smote_fills_a_domain(self) -> Self:
        if self.banks == "pooled" and self.smote:
            raise ValueError("smote fills the bank of a domain, and a pooled bank has none; leave out one of the two")
        return self

    def build(self) -> Detector:
        """An unfitted detector."""
        from scoring.domains import Banks

        return Banks(self.estimator(), self.banks == "pooled", self.smote, self.smote_k)

    def estimator(self) -> BaseEstimator:
        """An unfitted estimator for one bank."""
        raise NotImplementedError


class NoDensitySpec(Settings):
    """Distances are compared as they are."""

    name: Literal["none"] = "none"
    k: ClassVar[int] = 4
    weight: ClassVar[float] = 1.0


class RatioSpec(Settings):
    """A distance is divided by the mean distance of the neighbour to its own k neighbours."""

    name: Literal["ratio"] = "ratio"
    k: int = Field(4, ge=1)
    weight: ClassVar[float] = 1.0


class DifferenceSpec(Settings):
    """From a distance that mean is taken, times a weight; see `NearestNeighbours`."""

    name: Literal["difference"] = "difference"
    k: int = Field(4, ge=1)
    weight: DensityWeight = 1.0


DensitySpec = Annotated[
    NoDensitySpec | RatioSpec | DifferenceSpec, Field(discriminator="name"), BeforeValidator(by_name)
]


class KnnSpec(BankSettings):
    """Distance to the nearest clips; see `NearestNeighbours`."""

    name: Literal["knn"] = "knn"
    k: int = Field(1, ge=1)
    metric: Metric = "cosine"
    density: DensitySpec = NoDensitySpec()

    def estimator(self) -> BaseEstimator:
        """An unfitted estimator for one bank."""
        from scoring.neighbours import NearestNeighbours

        density = self.density
        return NearestNeighbours(self.k, self.metric, density.name, density.k, density.weight)


class BandKnnSpec(BankSettings):
    """Distance to the nearest clips in each frequency band; see `BandNeighbours`."""

    uses_bands: ClassVar[bool] = True

    name: Literal["band_knn"] = "band_knn"
    k: int = Field(1, ge=1)
    density: DensitySpec = NoDensitySpec()
    bands: Literal["mean", "maximum"] = "mean"

    def estimator(self) -> BaseEstimator:
        """An unfitted estimator for one bank."""
        from scoring.neighbours import BandNeighbours

        density = self.density
        return BandNeighbours(self.k, density.name, density.k, density.weight, self.bands)


class KMeansSpec(BankSettings):
    """Distance to the nearest of some centres; see `KMeansDistance`."""

    name: Literal["kmeans"] = "kmeans"
    clusters: int = Field(16, ge=1)
    metric: Metric = "cosine"

    def estimator(self) -> BaseEstimator:
        """An unfitted estimator for one bank."""
        from scoring.clusters import KMeansDistance

        return KMeansDistance(self.clusters, self.metric)


class MixtureSpec(BankSettings):
    """Likelihood under a Gaussian mixture; see `MixtureDensity`."""

    name: Literal["gmm"] = "gmm"
    components: int = Field(4, ge=1)
    floor: float = Field(0.1, ge=0)

    def estimator(self) -> BaseEstimator:
        """An unfitted estimator for one bank."""
        from scoring.clusters import MixtureDensity

        return MixtureDensity(self.components, self.floor)


DetectorSpec = Annotated[
    MahalanobisSpec | KnnSpec | BandKnnSpec | KMeansSpec | MixtureSpec,
    Field(discriminator="name"),
    BeforeValidator(by_name),
]
