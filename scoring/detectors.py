"""Detectors' settings, each a class with an entry in `DetectorSpec`; `build` makes the detector (`scoring.domains`)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from scoring.domains import Detector, DomainBanks
from scoring.mahalanobis import Mahalanobis
from scoring.neighbours import NearestNeighbours
from scoring.settings import DensityWeight, Metric, Settings, by_name

# Raised by hand when the same embeddings come to give other scores; every table is scored once more.
SCORING_VERSION = 2


class DetectorSettings(Settings):
    """What scoring asks of all detectors."""

    uses_bands: ClassVar[bool] = False

    @property
    def pools_domains(self) -> bool:
        """Whether all normals count as of one domain."""
        return False

    def build(self) -> Detector:
        """An unfitted detector."""
        raise NotImplementedError


class MahalanobisSpec(DetectorSettings):
    """Mahalanobis distance to the mean of each domain."""

    name: Literal["mahalanobis"] = "mahalanobis"
    shrinkage: Literal["ledoit_wolf"] | Annotated[float, Field(gt=0, le=1)] = Field(
        "ledoit_wolf",
        description="how far the covariance is drawn to a multiple of the identity; a share in (0, 1], or as in",
    )
    standardised: bool = Field(False, description="whether dimensions are divided by their standard deviation first")

    def build(self) -> Detector:
        """An unfitted detector."""
        return Mahalanobis(self.shrinkage, self.standardised)


class BankSettings(DetectorSettings):
    """Of detectors with a bank for each domain, or one pooled bank; see `DomainBanks`."""

    banks: Literal["separate", "pooled"] = Field(
        "separate", description="of source and target clips: one for each, or one for all"
    )

    @property
    def pools_domains(self) -> bool:
        """Whether all normals count as of one domain."""
        return self.banks == "pooled"

    def build(self) -> Detector:
        """An unfitted detector."""
        return DomainBanks(self.estimator)

    def estimator(self) -> Any:
        """An unfitted estimator for one bank."""
        raise NotImplementedError


class NoDensitySpec(Settings):
    """Distances are compared as they are."""

    name: Literal["none"] = "none"


class RatioSpec(Settings):
    """A distance is divided by the mean distance of the neighbour to its own k neighbours."""

    name: Literal["ratio"] = "ratio"
    k: int = Field(4, ge=1, description="neighbours that tell the density around a clip")


class DifferenceSpec(Settings):
    """From a distance that mean is taken away, times a weight."""

    name: Literal["difference"] = "difference"
    k: int = Field(4, ge=1, description="neighbours that tell the density around a clip")
    weight: DensityWeight = Field(1.0, description="of the density; a number, or fitted on the normals")


DensitySpec = Annotated[
    NoDensitySpec | RatioSpec | DifferenceSpec, Field(discriminator="name"), BeforeValidator(by_name)
]


class NeighboursSettings(BankSettings):
    """Distance to the nearest clips, see `NearestNeighbours`."""

    k: int = Field(1, ge=1, description="neighbours whose mean distance counts")
    density: DensitySpec = Field(NoDensitySpec(), description="what a distance counts relative to")

    def estimator(self) -> NearestNeighbours:
        """An unfitted estimator for one bank."""
        density = {f"density_{key}": value for key, value in self.density if key != "name"}
        own = self.model_dump(include={"metric", "bands"})
        return NearestNeighbours(self.k, density=self.density.name, **density, **own)


class KnnSpec(NeighboursSettings):
    """Distance to the nearest clips, an embedding being one vector."""

    name: Literal["knn"] = "knn"
    metric: Metric = Field("cosine", description="of distances")


class BandKnnSpec(NeighboursSettings):
    """Distance to the nearest clips by the cosine, each frequency band having neighbours of its own."""

    uses_bands: ClassVar[bool] = True

    name: Literal["band_knn"] = "band_knn"
    bands: Literal["mean", "maximum"] = Field("mean", description="of the distances in the bands")


DetectorSpec = Annotated[MahalanobisSpec | KnnSpec | BandKnnSpec, Field(discriminator="name"), BeforeValidator(by_name)]
