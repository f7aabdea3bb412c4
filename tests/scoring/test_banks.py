import numpy as np
import pyarrow as pa
import pytest

from scoring.banks import Bank, score_table, standardised
from scoring.detectors import BandKnnSpec, KMeansSpec, KnnSpec, MahalanobisSpec, MixtureSpec
from scoring.errors import InputError
from scoring.metrics import official_metrics
from tests.tables import make_table

DETECTORS = [
    MahalanobisSpec(),
    MahalanobisSpec(shrinkage="oas", covariance="domain", calibration="gamma"),
    MahalanobisSpec(means="attributes"),
    KnnSpec(),
    KnnSpec(k=3, metric="euclidean", calibration="tail"),
    KnnSpec(smote=0.5),
    KnnSpec(banks="pooled", density={"name": "difference", "weight": "fitted"}),
    MahalanobisSpec(standardised=True),
    KMeansSpec(banks="pooled", clusters=12),
    KMeansSpec(clusters=4, softness=0.5),
    MixtureSpec(components=2),
]
each_detector = pytest.mark.parametrize("detector", DETECTORS, ids=str)


@pytest.fixture
def clips():
    table = make_table(per_cell=10, train=30)
    pairs = [[("spd", str(i % 2))] for i in range(table.num_rows)]
    return table.append_column("attributes", pa.array(pairs, pa.map_(pa.string(), pa.string())))


@pytest.fixture
def embeddings(clips):
    """Anomalies lie off the normals' line; the target domain lies elsewhere on it."""
    rng = np.random.default_rng(0)
    domain, condition = clips["domain"].to_numpy(), clips["condition"].to_numpy()
    X = rng.normal(size=(clips.num_rows, 5)) * [3, 1, 1, 1, 1] + 5
    X[:, 0] += 20 * (domain == "target")
    X[:, 1] -= 12 * (condition == "anomaly")
    return X.astype(np.float32)


@each_detector
def test_anomalies_score_higher_in_both_domains(detector, clips, embeddings):
    found = official_metrics(score_table(clips, embeddings, detector, {}))
    for values in found.machines.values():
        assert min(values.auc_source, values.auc_target) > 75


@each_detector
def test_labels_and_other_test_clips_reach_no_score(detector, clips, embeddings):
    whole = score_table(clips, embeddings, detector, {})
    swapped = clips.set_column(5, "condition", clips["condition"].take(np.arange(clips.num_rows)[::-1]))
    relabelled = score_table(swapped, embeddings, detector, {})
    for column in ("score", "calibrated"):
        np.testing.assert_array_equal(whole[column], relabelled[column])
    split = clips["split"].to_numpy()
    few = np.flatnonzero((split == "train") | (np.arange(clips.num_rows) % 7 == 0))
    alone = score_table(clips.take(few), embeddings[few], detector, {})
    np.testing.assert_allclose(whole.take(few)["score"], alone["score"], rtol=1e-12)
    np.testing.assert_allclose(whole.take(few)["calibrated"], alone["calibrated"], rtol=1e-12)


@each_detector
def test_a_test_clips_domain_reaches_no_score(detector, clips, embeddings):
    test = clips["split"].to_numpy() == "test"
    hidden = clips.set_column(4, "domain", pa.array(np.where(test, None, clips["domain"].to_numpy())))
    known, unknown = (score_table(c, embeddings, detector, {}) for c in (clips, hidden))
    np.testing.assert_array_equal(known["score"], unknown["score"])


@each_detector
def test_a_test_clips_attributes_reach_no_score(detector, clips, embeddings):
    test = clips["split"].to_numpy() == "test"
    pairs = [[] if hidden else value for hidden, value in zip(test, clips["attributes"].to_pylist(), strict=True)]
    hidden = clips.set_column(8, "attributes", pa.array(pairs, pa.map_(pa.string(), pa.string())))
    known, unknown = (score_table(c, embeddings, detector, {}) for c in (clips, hidden))
    np.testing.assert_array_equal(known["score"], unknown["score"])


@each_detector
def test_training_clips_score_as_clips_that_have_not_been_heard(detector):
    """A training clip's score is what the banks without it give it, up to the folds of what has no closed form."""
    rng = np.random.default_rng(1)
    X, domain = rng.normal(2, 1, size=(25, 4)), np.array(["source"] * 15 + ["target"] * 10, object)
    attributes = np.array(list("ab" * 12 + "a"), object)
    held_out = detector.build().fit(X, domain, attributes).held_out_distances()
    folds = not isinstance(detector, MahalanobisSpec | KnnSpec)
    if getattr(detector, "standardised", False) or (folds and detector.banks == "pooled"):
        pytest.skip("by folds of more than one clip")
    exact = range(15, 25) if folds else range(25)
    for i in exact:
        kept = np.arange(25) != i
        again = detector.build().fit(X[kept], domain[kept], attributes[kept])
        if getattr(detector, "smote", 0) and i < 15:
            continue  # the target domain is filled up to a share of the source domain, which has lost a clip
        np.testing.assert_allclose(held_out[i], again.distances(X[i : i + 1])[0], rtol=1e-9)


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


def test_clips_of_a_standardised_fold_are_in_no_reference():
    rng = np.random.default_rng(6)
    X, domain = rng.normal(2, [1, 50, 3], size=(33, 3)), np.array(["source"] * 23 + ["target"] * 10, object)
    spec, none = MahalanobisSpec(standardised=True), np.full(33, "", object)
    held_out = spec.build().fit(X, domain, none).held_out_distances()
    for i in (0, 4, 9):
        held = np.zeros(33, bool)
        held[[j for j in (i, i + 10, i + 20) if j < 23] + [23 + i]] = True
        others = spec.build().fit(X[~held], domain[~held], none[~held])
        np.testing.assert_allclose(held_out[held], others.distances(X[held]))


def test_standardised_distances_know_no_unit():
    rng = np.random.default_rng(7)
    X, domain, none = rng.normal(size=(40, 5)), np.array(["source", "target"] * 20, object), np.full(40, "", object)
    unit = np.array([1, 1000, 0.01, 3, 1.0])
    plain, scaled = (MahalanobisSpec(standardised=True).build().fit(Z, domain, none) for Z in (X, X * unit))
    np.testing.assert_allclose(plain.distances(X), scaled.distances(X * unit))
    constant = np.concatenate([X, np.ones((40, 1))], axis=1)
    assert np.isfinite(MahalanobisSpec(standardised=True).build().fit(constant, domain, none).distances(constant)).all()


def test_a_pooled_bank_knows_no_domain():
    rng = np.random.default_rng(8)
    X, new = rng.normal(1, 1, size=(30, 4)), rng.normal(1, 1, size=(7, 4))
    domain = np.array(["source"] * 25 + ["target"] * 5, object)
    banks = [Bank(KnnSpec(banks="pooled"), X, d) for d in (domain, domain[::-1], np.full(30, "source", object))]
    for bank in banks[1:]:
        np.testing.assert_array_equal(bank.scores(new), banks[0].scores(new))
        np.testing.assert_array_equal(bank.train_scores, banks[0].train_scores)
    assert not np.allclose(Bank(KnnSpec(), X, domain).scores(new), banks[0].scores(new))


def test_a_soft_minimum_lies_between_the_smallest_and_the_mean():
    rng = np.random.default_rng(3)
    train, test = rng.normal(size=(40, 3)), rng.normal(size=(20, 3)) + 1
    domain = np.array(["source", "target"] * 20, object)
    hard, slightly, much = (Bank(KnnSpec(softness=s), train, domain).scores(test) for s in (0, 1e-3, 1e3))
    np.testing.assert_allclose(slightly, hard, atol=1e-3)
    assert (much > hard).all()


def test_bands_are_kept_apart_or_seen_as_one_vector():
    clips = make_table(["fan"], per_cell=4)
    X = np.random.default_rng(4).normal(1, 1, size=(clips.num_rows, 3, 5)).astype(np.float32)
    flat = score_table(clips, X.reshape(len(X), -1), KnnSpec(), {})
    assert score_table(clips, X, KnnSpec(), {}).equals(flat)
    by_band = score_table(clips, X, BandKnnSpec(), {})
    train, test = (clips["split"].to_numpy() == s for s in ("train", "test"))
    unit = X / np.linalg.norm(X, axis=2, keepdims=True)
    domain = clips["domain"].to_numpy()[train]
    cosine = np.einsum("ibe,jbe->ijb", unit[test], unit[train])
    expected = [0.5 * (1 - cosine[:, domain == d].max(axis=1)).mean(axis=1) for d in ("source", "target")]
    detector = BandKnnSpec().build().fit(X[train], domain, domain)
    np.testing.assert_allclose(detector.distances(X[test]), np.stack(expected, axis=1), atol=1e-6)
    assert not by_band["score"].equals(flat["score"])
    with pytest.raises(InputError, match="band_knn compares frequency bands"):
        score_table(clips, X[:, 0], BandKnnSpec(), {})


@pytest.mark.parametrize("detector", [d for d in DETECTORS if getattr(d, "banks", "separate") != "pooled"], ids=str)
def test_a_tiny_domain_is_neither_drowned_nor_trusted(detector):
    """Normals of a domain with ten clips score as high as those of one with hundreds, but for the luck of the ten."""
    domain = np.array(["source"] * 200 + ["target"] * 10, object)
    differences = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        X = rng.normal(size=(210, 8)) + np.where(domain == "target", 30.0, 0.0)[:, None]
        fresh = rng.normal(size=(200, 8)) + np.repeat([0.0, 30.0], 100)[:, None]
        scores = Bank(detector, X, domain).scores(fresh)
        differences.append(scores[100:].mean() - scores[:100].mean())
    assert np.mean(differences) == pytest.approx(0, abs=0.8)


@each_detector
def test_one_domain_is_enough(detector):
    X = np.random.default_rng(3).normal([5, 0, 0], 0.3, size=(9, 3))
    bank = Bank(detector, X, np.array(["source"] * 9, object))
    train, test = bank.train_scores, bank.scores(np.array([[0.0, 5, 0], [0, 0, -5]]))
    assert train.shape == (9,)
    assert (test > train.max()).all()


@each_detector
def test_a_domain_of_one_clip(detector):
    X = np.random.default_rng(4).normal(size=(9, 3))
    bank = Bank(detector, X, np.array(["source"] * 8 + ["target"], object))
    train, test = bank.train_scores, bank.scores(X)
    assert np.isfinite(train).all()
    assert np.isfinite(test).all()
    assert test[8] < train[8]


@each_detector
def test_copies_of_clips_are_no_numbers_out_of_nowhere(detector, clips, embeddings):
    """A bank of pairs still tells a scale; a bank of copies of one clip is an error."""
    train = clips["split"].to_numpy() == "train"
    twice, same = embeddings.copy(), embeddings.copy()
    rows = np.flatnonzero(train)
    twice[rows[1::2]] = twice[rows[::2]]
    twice[rows[0]] += 0.5
    same[rows] = same[rows[0]]
    assert np.isfinite(score_table(clips, twice, detector, {})["calibrated"].to_numpy()).all()
    with pytest.raises(InputError, match=r"machine fan section 0.*(equal|no covariance)"):
        score_table(clips, same, detector, {})


def test_bad_input_is_named(clips, embeddings):
    broken = embeddings.copy()
    broken[3, 1] = np.nan
    with pytest.raises(InputError, match=r"the embedding of fan/.*wav is not finite"):
        score_table(clips, broken, MahalanobisSpec(), {})
    lonely = make_table(["fan"], train=2)
    with pytest.raises(InputError, match="fan section 0: 2 training clips"):
        score_table(lonely, np.ones((lonely.num_rows, 2)), KnnSpec(), {})
    with pytest.raises(InputError, match="clips have no column attributes"):
        score_table(make_table(), embeddings[: make_table().num_rows], MahalanobisSpec(means="attributes"), {})
    unknown = clips.set_column(4, "domain", pa.nulls(clips.num_rows, pa.string()))
    with pytest.raises(InputError, match="fan section 0: the domain of a training clip is not known"):
        score_table(unknown, embeddings, KnnSpec(), {})
