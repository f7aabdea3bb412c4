"""Embeddings become distances, and these scores: what holds of every detector, and what its settings may be."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from sklearn.covariance import LedoitWolf, ShrunkCovariance
from sklearn.metrics.pairwise import cosine_distances, euclidean_distances
from sklearn.neighbors import KernelDensity

from scoring import detectors, neighbours
from scoring.banks import ReferenceBank, in_form, score_table, standardised
from scoring.detectors import BandKnnSpec, KnnSpec, MahalanobisSpec
from scoring.errors import InputError
from scoring.mahalanobis import Mahalanobis
from scoring.metrics import official_metrics
from scoring.neighbours import NearestNeighbours
from tests.tables import make_table


class KernelDensitySpec(detectors.BankSettings):
    name: str = "kernel_density"

    def estimator(self):
        return KernelDensity(bandwidth=2.0)


K = st.integers(1, 4)
DENSITIES = st.one_of(
    st.just("none"),
    st.builds(detectors.RatioSpec, k=K),
    st.builds(detectors.DifferenceSpec, k=K, weight=st.sampled_from([0.3, 1.0, "fitted"])),
)
BANKS = {"k": K, "density": DENSITIES, "banks": st.sampled_from(["separate", "pooled"])}
DETECTORS = st.one_of(
    st.builds(MahalanobisSpec, shrinkage=st.sampled_from(["ledoit_wolf", 0.1, 0.8]), standardised=st.booleans()),
    st.builds(KnnSpec, metric=st.sampled_from(["cosine", "euclidean"]), **BANKS),
    st.builds(BandKnnSpec, bands=st.sampled_from(["mean", "maximum"]), **BANKS),
    st.builds(KernelDensitySpec, banks=BANKS["banks"]),
)


@st.composite
def training_clips(draw, source, target):
    """Embeddings (n, bands, E) of different size in each dimension, and the domain of each, 0 or 1."""
    sizes = draw(st.integers(*source)), draw(st.integers(*target))
    rng, shape = np.random.default_rng(draw(st.integers(0, 999))), (draw(st.integers(1, 3)), draw(st.integers(1, 9)))
    X = rng.gamma(1, size=(sum(sizes), *shape)) * rng.gamma(1, size=shape[1]) + 3
    return X.astype(draw(st.sampled_from([np.float32, np.float64]))), np.repeat([0, 1], sizes)


def fitted(detector, X, domain):
    """Fitted to embeddings (n, bands, E), the domains being numbered anew where one is gone."""
    member = np.unique(domain, return_inverse=True)[1]
    return detector.build().fit(in_form(X, detector), np.zeros_like(member) if detector.pools_domains else member)


def by_definition(detector, X, domain, queries):
    """Distances (m, domains) of queries (m, bands, E) by scikit-learn and plain loops."""
    X, queries = (in_form(Z, detector).astype(float) for Z in (X, queries))
    banks = [X] if detector.pools_domains else [X[domain == d] for d in np.unique(domain)]
    if detector.name == "mahalanobis":
        unit = X.std(axis=0) if detector.standardised else 1
        shrunk = LedoitWolf() if detector.shrinkage == "ledoit_wolf" else ShrunkCovariance(shrinkage=detector.shrinkage)
        shrunk.set_params(assume_centered=True).fit(np.concatenate([bank - bank.mean(axis=0) for bank in banks]) / unit)
        distances = [np.sqrt(shrunk.mahalanobis((queries - bank.mean(axis=0)) / unit)) for bank in banks]
    elif detector.name == "kernel_density":
        distances = [-detector.estimator().fit(bank).score_samples(queries) for bank in banks]
    else:
        over_bands = np.max if detector.uses_bands and detector.bands == "maximum" else np.mean
        pairs = ([Z.reshape(len(Z), -1, Z.shape[-1]).swapaxes(0, 1) for Z in (bank, queries)] for bank in banks)
        of_bands = ([distances_to_neighbours(detector, *band) for band in zip(*pair, strict=True)] for pair in pairs)
        distances = [over_bands(of, axis=0) for of in of_bands]
    return np.stack(distances, axis=1)


def distances_to_neighbours(detector, bank, queries):
    """By the neighbours of the queries among the clips of a bank, and of these among each other."""
    euclidean, density = getattr(detector, "metric", "cosine") == "euclidean", detector.density
    among, to = (euclidean_distances(Z, bank) if euclidean else cosine_distances(Z, bank) for Z in (bank, queries))
    np.fill_diagonal(among, np.inf)
    if density.name != "none":
        among, to = (among**2 / 2, to**2 / 2) if euclidean else (among, to)
        usual = np.array([np.sort(row)[: density.k][: len(bank) - 1].mean() for row in among])
        weight = getattr(density, "weight", 0)
        if weight == "fitted":
            nearest = among.argsort(axis=1)[:, : min(detector.k, len(bank) - 1)]
            u, v = np.take_along_axis(among, nearest, axis=1).mean(axis=1), usual[nearest].mean(axis=1)
            weight = np.cov(u, v)[0, 1] / np.var(v, ddof=1) if np.var(v) > 1e-12 else 0
        to = to / np.maximum(usual, 1e-12) if density.name == "ratio" else to - weight * usual
    return np.sort(to, axis=1)[:, : detector.k].mean(axis=1)


@given(DETECTORS, training_clips((1, 14), (0, 6)))
@settings(max_examples=150, deadline=None)
def test_distances_are_those_of_the_definition_and_held_out_ones_those_of_a_refit_without_the_clip(detector, clips):
    X, domain = clips
    n, of_two = len(X), 1 in domain
    assume(n > 4 + 2 * of_two if isinstance(detector, MahalanobisSpec) else n > 1)  # of too few rounding is left
    estimator = fitted(detector, X, domain)
    held_out = estimator.held_out_distances()
    for i in range(n):
        kept = np.arange(n) != i
        there = [0] if detector.pools_domains else np.unique(domain[kept])
        expected = fitted(detector, X[kept], domain[kept]).distances(in_form(X[i : i + 1], detector))[0]
        np.testing.assert_allclose(held_out[i, there], expected, rtol=1e-6, atol=1e-10)
        assert np.isnan(np.delete(held_out[i], there)).all()
    if (np.bincount(domain) > 1).all() and X.shape[2] > 1:  # of one number there is no direction
        queries = np.random.default_rng(n).normal(3, 2, size=(4, *X.shape[1:]))
        found, expected = estimator.distances(in_form(queries, detector)), by_definition(detector, X, domain, queries)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("n", "E", "standardised"), [(60, 12, False), (60, 12, True), (30, 80, False), (30, 80, True)])
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


@pytest.mark.parametrize("density", ["none", "ratio", "difference"])
def test_a_large_bank_is_searched_in_blocks_copies_are_not_away_and_rounding_is_no_density(monkeypatch, density):
    bank, queries = np.random.default_rng(0).gamma(1, size=(2, 40, 2, 5))
    estimator = NearestNeighbours(3, density=density, density_weight="fitted").fit(bank)
    expected = estimator.score_samples(queries), estimator.held_out_score_samples()
    monkeypatch.setattr(neighbours, "CELLS", 7 * 40)
    estimator.fit(bank)
    np.testing.assert_allclose([estimator.score_samples(queries), estimator.held_out_score_samples()], expected)
    few = bank[:2, 0].repeat(6, axis=0)
    copies, lone = (NearestNeighbours(density=density).fit(X) for X in (few, few[:1]))
    np.testing.assert_allclose([*copies.held_out_score_samples(), *lone.score_samples(few[:1])], 0, atol=1e-12)
    assert lone.score_samples(np.zeros((1, 5))) == pytest.approx(-0.5)
    far = np.array([[1e4, 0.0], [1e4, 7.0]])
    found = NearestNeighbours(metric="euclidean").fit(far).score_samples(far + np.array([0, 1e-3]))
    np.testing.assert_allclose(found, -1e-3, rtol=1e-6)
    same_everywhere = NearestNeighbours(1, "cosine", "difference", 4, "fitted").fit(np.eye(6))
    np.testing.assert_allclose(same_everywhere.score_samples(np.eye(6)), 0, atol=1e-12)


CLIPS = make_table(per_cell=10, train=30)
# Anomalies lie off the normals' line; the target domain lies elsewhere on it.
EMBEDDINGS = np.random.default_rng(0).normal(size=(CLIPS.num_rows, 2, 5)) * [3, 1, 1, 1, 1] + 5
EMBEDDINGS[..., 0] += 20 * (CLIPS["domain"].to_numpy() == "target")[:, None]
EMBEDDINGS[..., 1] -= 12 * (CLIPS["condition"].to_numpy() == "anomaly")[:, None]
UNKNOWN_DOMAIN = CLIPS.set_column(4, "domain", pa.array([*CLIPS["domain"].to_pylist()[:-1], None]))


@given(detector=DETECTORS, random=st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_nothing_that_is_hidden_reaches_a_score(detector, random):
    rows = [i for i, split in enumerate(CLIPS["split"].to_pylist()) if split == "train" or random.random() < 0.5]
    random.shuffle(rows)
    kept, test = CLIPS.take(rows), CLIPS["split"].to_numpy()[rows] == "test"
    for column, hidden in (("condition", np.full(len(rows), True)), ("domain", test | detector.pools_domains)):
        values = kept[column].to_numpy().copy()
        values[hidden] = random.sample(list(values[hidden]), int(hidden.sum()))
        values[test & (np.arange(len(rows)) % 3 == 0)] = None
        kept = kept.set_column(kept.column_names.index(column), column, pa.array(values, pa.string()))
    whole, few = (
        score_table(clips, X, detector, {}).to_pandas().set_index(["machine", "clip"])[["score", "calibrated"]]
        for clips, X in ((CLIPS, EMBEDDINGS), (kept, EMBEDDINGS[rows]))
    )
    np.testing.assert_allclose(few, whole.loc[few.index], rtol=1e-6, atol=1e-9)


def test_anomalies_score_higher_domains_count_unless_pooled_and_bands_are_one_vector_unless_compared():
    flat = score_table(CLIPS, EMBEDDINGS.reshape(len(EMBEDDINGS), -1), KnnSpec(), {})
    for values in official_metrics(flat).machines.values():
        assert min(values.auc_source, values.auc_target) > 90
    assert score_table(CLIPS, EMBEDDINGS, KnnSpec(), {}).equals(flat)
    for other in (BandKnnSpec(), KnnSpec(banks="pooled")):
        assert not np.allclose(score_table(CLIPS, EMBEDDINGS, other, {})["score"], flat["score"])


def test_what_is_usual_is_told_without_the_clip_itself():
    rng = np.random.default_rng(2)
    held_out, member = rng.gamma(3, size=(14, 2)), np.array([0] * 10 + [1] * 4)
    found, other = standardised(held_out, member, held_out[:3] + 1)
    for i in (0, 9, 11):
        kept = np.arange(14) != i
        _, alone = standardised(held_out[kept], member[kept], held_out[i : i + 1])
        np.testing.assert_allclose(found[i], alone[0])
    own = [held_out[member == d, d] for d in (0, 1)]
    pooled = sum(len(o) * o.var() for o in own) / 14
    spread = [np.sqrt((len(o) * o.var() + 10 * pooled) / (len(o) + 10)) for o in own]
    np.testing.assert_allclose(other, (held_out[:3] + 1 - [o.mean() for o in own]) / spread)


@given(DETECTORS, st.integers(3, 9), st.integers(0, 2), st.booleans(), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_few_clips_and_copies_give_no_score_that_is_rounding(detector, source, target, copied, seed):
    X = np.random.default_rng(seed).normal(3, 1, size=(source + target, 2, 4))
    if copied and source > 5:
        X[1 : source - 2 : 2] = X[: source - 3 : 2]
    bank = ReferenceBank.fit(detector, X, np.array(["source"] * source + ["target"] * target, object))
    assert np.abs([*bank.train_scores, *bank.scores(X), *bank.scores(X + 1)]).max() < 1e6
    again = ReferenceBank.restored(detector, bank.arrays())
    for of in (lambda b: b.train_scores, lambda b: b.scores(X + 1)):
        np.testing.assert_array_equal(of(again), of(bank))


READ = TypeAdapter(detectors.DetectorSpec).validate_python


def scored(X, clips=CLIPS):
    return score_table(clips, X, BandKnnSpec(), {})


def test_a_name_alone_is_the_defaults_and_what_cannot_be_scored_or_set_is_named():
    knn = {"banks": "separate", "k": 1, "density": {"name": "none"}}
    assert READ("knn").model_dump() == {**knn, "name": "knn", "metric": "cosine"}
    assert READ({"name": "band_knn", "density": "ratio"}) == BandKnnSpec(density=detectors.RatioSpec(k=4), bands="mean")
    assert READ("mahalanobis") == MahalanobisSpec(shrinkage="ledoit_wolf", standardised=False)
    assert READ({"name": "knn", "density": "difference"}).density == detectors.DifferenceSpec(k=4, weight=1.0)
    assert KnnSpec.model_validate(None) == KnnSpec()
    for call, message in (
        (lambda: scored(np.vstack([EMBEDDINGS[:3], EMBEDDINGS[3:] * np.inf])), f"of fan/{CLIPS['clip'][3]} is not fin"),
        (lambda: scored(EMBEDDINGS[:, 0]), "band_knn compares frequency bands, but an embedding is one vector"),
        (lambda: scored(EMBEDDINGS * 0 + 1), "machine fan section 0: .*equal"),
        (lambda: scored(EMBEDDINGS[:62], make_table(["fan"], 15, 2)), "section 0: 2 training clips; .* at least 3"),
        (lambda: scored(EMBEDDINGS, UNKNOWN_DOMAIN), "pump section 0: the domain of a training clip is not known"),
        (lambda: Mahalanobis().fit(np.full((9, 3), 0.1)), "there is no covariance"),
        (lambda: Mahalanobis().fit(np.eye(9)[:, [0, 0]] + 0.1).held_out_distances(), "without that one"),
        (lambda: READ({"name": "mahalanobis", "shrinkage": 0}), "greater than 0"),
        (lambda: READ({"name": "mahalanobis", "shrinkage": 1.1}), "less than or equal to 1"),
        (lambda: READ({"name": "knn", "metrik": 1}), "unknown key; did you mean metric.; allowed: banks, density, k, "),
        (lambda: READ({"name": "isolation"}), "'mahalanobis', 'knn', 'band_knn'"),
        (lambda: READ({"name": "knn", "density": {"name": "difference", "weight": -1}}), "greater than or equal to 0"),
        (lambda: READ({"name": "knn", "density": {"name": "difference", "weight": np.nan}}), "finite number"),
        (lambda: READ({"name": "knn", "metrik": 1, "k": 0, "density": "wide"}), "3 validation errors"),
        (lambda: READ({"name": "knn", "k": 0}), "greater than or equal to 1"),
        (lambda: KnnSpec.model_validate(3), "should be a mapping with keys among banks, density, k, metric, name"),
        (lambda: setattr(KnnSpec(), "k", 2), "frozen"),
    ):
        with pytest.raises((InputError, ValidationError), match=message):
            call()
