import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scoring.banks import in_form
from scoring.detectors import MahalanobisSpec
from tests.scoring.detectors import DETECTORS, KernelDensitySpec


def fit(detector, X, domain):
    """Fitted to embeddings (n, bands, E), the domains being numbered anew where one is gone."""
    member = np.unique(domain, return_inverse=True)[1]
    return detector.build().fit(in_form(X, detector), np.zeros_like(member) if detector.pools_domains else member)


@given(
    st.sampled_from(DETECTORS),
    st.integers(1, 14),
    st.integers(0, 6),
    st.integers(1, 3),
    st.integers(1, 9),
    st.sampled_from([np.float32, np.float64]),
    st.integers(0, 999),
)
@settings(max_examples=150, deadline=None)
def test_held_out_is_refitting_without_the_clip(detector, source, target, bands, E, dtype, seed):
    rng = np.random.default_rng(seed)
    n, domain = source + target, np.repeat([0, 1], [source, target])
    assume(n > 4 + 2 * (target > 0) if isinstance(detector, MahalanobisSpec) else n > 1)  # of too few rounding is left
    X = (rng.gamma(1, size=(n, bands, E)) * rng.gamma(1, size=E) + 3).astype(dtype)
    held_out = fit(detector, X, domain).held_out_distances()
    for i in range(n):
        kept = np.arange(n) != i
        there = [0] if detector.pools_domains else np.unique(domain[kept])
        expected = fit(detector, X[kept], domain[kept]).distances(in_form(X[i : i + 1], detector))[0]
        np.testing.assert_allclose(held_out[i, there], expected, rtol=1e-6, atol=1e-10)
        assert np.isnan(np.delete(held_out[i], there)).all()


@pytest.mark.parametrize("detector", DETECTORS, ids=str)
def test_a_distance_is_that_to_the_normals_of_its_domain(detector):
    rng = np.random.default_rng(0)
    domain = np.repeat([0, 1], [30, 6])
    X = rng.normal(size=(36, 2, 3)) + 6 * domain[:, None, None] * [1, 0, 0]
    fitted = fit(detector, X, domain)
    distances, held_out = fitted.distances(in_form(X[:5], detector)), fitted.held_out_distances()
    assert distances.shape == (5, held_out.shape[1])
    if not detector.pools_domains:
        assert np.median(held_out[:30, 0]) < np.median(held_out[:30, 1])


def test_an_estimator_of_ones_own_has_a_clone_for_each_domain():
    domain = np.repeat([0, 1], [8, 4])
    X = np.random.default_rng(1).normal(size=(12, 3))
    found = KernelDensitySpec().build().fit(X, domain).distances(X)
    for d in (0, 1):
        np.testing.assert_allclose(found[:, d], -KernelDensitySpec().estimator().fit(X[domain == d]).score_samples(X))
