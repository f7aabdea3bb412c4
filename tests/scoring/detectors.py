"""One detector of each kind, and of each way that its scores without a clip are found."""

from typing import Literal

from sklearn.base import BaseEstimator
from sklearn.neighbors import KernelDensity

from scoring.detectors import BandKnnSpec, BankSettings, KnnSpec, MahalanobisSpec


class KernelDensitySpec(BankSettings):
    """Somebody's own, of which nothing is known but scikit-learn's contract."""

    name: Literal["kernel_density"] = "kernel_density"

    def estimator(self) -> BaseEstimator:
        return KernelDensity(bandwidth=2.0)


FITTED = {"name": "difference", "weight": "fitted"}
DETECTORS = [
    MahalanobisSpec(),
    MahalanobisSpec(shrinkage=0.1),
    MahalanobisSpec(standardised=True),
    MahalanobisSpec(shrinkage=0.1, standardised=True),
    KnnSpec(),
    KnnSpec(k=3, metric="euclidean"),
    KnnSpec(k=2, density="ratio"),
    KnnSpec(k=2, metric="euclidean", density={"name": "ratio", "k": 1}, banks="pooled"),
    KnnSpec(density="difference"),
    KnnSpec(k=3, density={**FITTED, "k": 2}),
    BandKnnSpec(),
    BandKnnSpec(k=2, bands="maximum", density={"name": "difference", "weight": 0.3}),
    BandKnnSpec(banks="pooled", density=FITTED),
    KernelDensitySpec(),
]
