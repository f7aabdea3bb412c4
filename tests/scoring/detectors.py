"""Detectors with whatever settings, and their distances by definition."""

from typing import Literal

import numpy as np
from hypothesis import strategies as st
from sklearn.base import BaseEstimator
from sklearn.covariance import LedoitWolf, ShrunkCovariance
from sklearn.metrics.pairwise import cosine_distances, euclidean_distances
from sklearn.neighbors import KernelDensity

from scoring.banks import in_form
from scoring.detectors import BandKnnSpec, BankSettings, DifferenceSpec, KnnSpec, MahalanobisSpec, RatioSpec


class KernelDensitySpec(BankSettings):
    """Somebody's own, of which nothing is known but scikit-learn's contract."""

    name: Literal["kernel_density"] = "kernel_density"

    def estimator(self) -> BaseEstimator:
        return KernelDensity(bandwidth=2.0)


K = st.integers(1, 4)
WEIGHTS = st.sampled_from([0.3, 1.0, "fitted"])
DENSITIES = st.one_of(st.just("none"), st.builds(RatioSpec, k=K), st.builds(DifferenceSpec, k=K, weight=WEIGHTS))
BANKS = {"k": K, "density": DENSITIES, "banks": st.sampled_from(["separate", "pooled"])}
DETECTORS = st.one_of(
    st.builds(MahalanobisSpec, shrinkage=st.sampled_from(["ledoit_wolf", 0.1, 0.8]), standardised=st.booleans()),
    st.builds(KnnSpec, metric=st.sampled_from(["cosine", "euclidean"]), **BANKS),
    st.builds(BandKnnSpec, bands=st.sampled_from(["mean", "maximum"]), **BANKS),
    st.builds(KernelDensitySpec, banks=BANKS["banks"]),
)


def fitted(detector, X, domain):
    """Fitted to embeddings (n, bands, E), the domains being numbered anew where one is gone."""
    member = np.unique(domain, return_inverse=True)[1]
    return detector.build().fit(in_form(X, detector), np.zeros_like(member) if detector.pools_domains else member)


def by_definition(detector, X, domain, queries):
    """Distances (m, domains) of queries (m, bands, E) by scikit-learn and plain loops."""
    X, queries = (in_form(Z, detector).astype(float) for Z in (X, queries))
    domain = np.zeros_like(domain) if detector.pools_domains else domain
    banks = [X[domain == d] for d in np.unique(domain)]
    match detector.name:
        case "mahalanobis":
            distances = mahalanobis(detector, banks, queries)
        case "kernel_density":
            distances = [-detector.estimator().fit(bank).score_samples(queries) for bank in banks]
        case "knn":
            distances = [neighbours(detector, bank, queries) for bank in banks]
        case "band_knn":
            over_bands = np.mean if detector.bands == "mean" else np.max
            bands = range(X.shape[1])
            distances = [
                over_bands([neighbours(detector, bank[:, b], queries[:, b]) for b in bands], axis=0) for bank in banks
            ]
    return np.stack(distances, axis=1)


def mahalanobis(detector, groups, queries):
    unit = np.concatenate(groups).std(axis=0) if detector.standardised else 1
    centred = np.concatenate([group - group.mean(axis=0) for group in groups]) / unit
    if detector.shrinkage == "ledoit_wolf":
        covariance = LedoitWolf(assume_centered=True)
    else:
        covariance = ShrunkCovariance(assume_centered=True, shrinkage=detector.shrinkage)
    precision = covariance.fit(centred).precision_
    from_means = [(queries - group.mean(axis=0)) / unit for group in groups]
    return [np.sqrt(np.einsum("me,ef,mf->m", d, precision, d)) for d in from_means]


def neighbours(detector, bank, queries):
    """By the neighbours of the queries among the clips of a bank, and of these among each other."""
    euclidean, density = getattr(detector, "metric", "cosine") == "euclidean", detector.density
    among, to = (euclidean_distances(Z, bank) if euclidean else cosine_distances(Z, bank) for Z in (bank, queries))
    np.fill_diagonal(among, np.inf)
    if density.name != "none":
        if euclidean:
            among, to = among**2 / 2, to**2 / 2
        usual = np.array([np.sort(row)[: density.k][: len(bank) - 1].mean() for row in among])
        if density.name == "ratio":
            to = to / np.maximum(usual, 1e-12)
        else:
            weight = density.weight
            if weight == "fitted":
                nearest = among.argsort(axis=1)[:, : min(detector.k, len(bank) - 1)]
                u, v = np.take_along_axis(among, nearest, axis=1).mean(axis=1), usual[nearest].mean(axis=1)
                weight = np.cov(u, v)[0, 1] / np.var(v, ddof=1) if np.var(v) > 1e-12 else 0
            to = to - weight * usual
    return np.sort(to, axis=1)[:, : detector.k].mean(axis=1)
