import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.banks import ReferenceBank, score_table, standardised
from scoring.detectors import BandKnnSpec, KnnSpec, MahalanobisSpec
from scoring.errors import InputError
from scoring.metrics import official_metrics
from tests.scoring.detectors import DETECTORS
from tests.tables import make_table

each_detector = pytest.mark.parametrize("detector", DETECTORS, ids=str)


@pytest.fixture(scope="module")
def clips():
    return make_table(per_cell=10, train=30)


@pytest.fixture(scope="module")
def embeddings(clips):
    """Anomalies lie off the normals' line; the target domain lies elsewhere on it."""
    rng = np.random.default_rng(0)
    domain, condition = clips["domain"].to_numpy(), clips["condition"].to_numpy()
    X = rng.normal(size=(clips.num_rows, 2, 5)) * [3, 1, 1, 1, 1] + 5
    X[..., 0] += 20 * (domain == "target")[:, None]
    X[..., 1] -= 12 * (condition == "anomaly")[:, None]
    return X.astype(np.float32)


@each_detector
def test_anomalies_score_higher_in_both_domains(detector, clips, embeddings):
    found = official_metrics(score_table(clips, embeddings, detector, {}))
    for values in found.machines.values():
        assert min(values.auc_source, values.auc_target) > 75


@given(st.sampled_from(DETECTORS), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_nothing_that_is_hidden_reaches_a_score(clips, embeddings, detector, random):
    """Neither labels, nor domains of test clips, nor the other test clips, nor the order of the rows."""
    whole = score_table(clips, embeddings, detector, {}).to_pandas().set_index(["machine", "clip"])
    rows = [i for i, split in enumerate(clips["split"].to_pylist()) if split == "train" or random.random() < 0.5]
    random.shuffle(rows)
    kept, test = clips.take(rows), clips["split"].to_numpy()[rows] == "test"
    for column, hidden in (("condition", np.full(len(rows), True)), ("domain", test)):
        values = kept[column].to_numpy().copy()
        values[hidden] = random.sample(list(values[hidden]) + [None] * 9, int(hidden.sum()))
        kept = kept.set_column(kept.column_names.index(column), column, pa.array(values, pa.string()))
    few = score_table(kept, embeddings[rows], detector, {}).to_pandas().set_index(["machine", "clip"])
    for column in ("score", "calibrated"):
        np.testing.assert_allclose(few[column], whole.loc[few.index, column], rtol=1e-6, atol=1e-9)


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


def test_a_pooled_bank_knows_no_domain():
    rng = np.random.default_rng(8)
    X, new = rng.normal(1, 1, size=(30, 4)), rng.normal(1, 1, size=(7, 4))
    domain = np.array(["source"] * 25 + ["target"] * 5, object)
    banks = [
        ReferenceBank(KnnSpec(banks="pooled"), X, d) for d in (domain, domain[::-1], np.full(30, "source", object))
    ]
    for bank in banks[1:]:
        np.testing.assert_array_equal(bank.scores(new), banks[0].scores(new))
        np.testing.assert_array_equal(bank.train_scores, banks[0].train_scores)
    assert not np.allclose(ReferenceBank(KnnSpec(), X, domain).scores(new), banks[0].scores(new))


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
    expected = [(1 - cosine[:, domain == d].max(axis=1)).mean(axis=1) for d in ("source", "target")]
    detector = BandKnnSpec().build().fit(X[train], np.unique(domain.astype(str), return_inverse=True)[1])
    np.testing.assert_allclose(detector.distances(X[test]), np.stack(expected, axis=1), atol=1e-6)
    assert not by_band["score"].equals(flat["score"])
    with pytest.raises(InputError, match="band_knn compares frequency bands"):
        score_table(clips, X[:, 0], BandKnnSpec(), {})


@pytest.mark.parametrize("detector", [d for d in DETECTORS if not d.pools_domains], ids=str)
def test_a_tiny_domain_is_neither_drowned_nor_trusted(detector):
    """Normals of a domain with ten clips score as high as those of one with hundreds, but for the luck of the ten."""
    domain = np.array(["source"] * 200 + ["target"] * 10, object)
    differences = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        X = rng.normal(size=(210, 2, 4)) + np.where(domain == "target", 30.0, 0.0)[:, None, None]
        fresh = rng.normal(size=(200, 2, 4)) + np.repeat([0.0, 30.0], 100)[:, None, None]
        scores = ReferenceBank(detector, X, domain).scores(fresh)
        differences.append(scores[100:].mean() - scores[:100].mean())
    assert np.mean(differences) == pytest.approx(0, abs=0.8)


@each_detector
def test_one_domain_is_enough(detector):
    X = np.random.default_rng(3).normal([5, 0, 0], 0.3, size=(9, 2, 3))
    bank = ReferenceBank(detector, X, np.array(["source"] * 9, object))
    train, test = bank.train_scores, bank.scores(np.full((2, 2, 3), [[[0.0, 5, 0]], [[0, 0, -5]]]))
    assert train.shape == (9,)
    assert (test > train.max()).all()


@each_detector
def test_a_domain_of_one_clip(detector):
    X = np.random.default_rng(4).normal(size=(9, 2, 3))
    bank = ReferenceBank(detector, X, np.array(["source"] * 8 + ["target"], object))
    train, test = bank.train_scores, bank.scores(X)
    assert np.isfinite(train).all()
    assert np.isfinite(test).all()
    assert test[8] < train[8] + 1e-9


@each_detector
def test_three_clips_give_no_score_that_is_rounding(detector):
    """Without the third, two clips are as far from each other: they tell no scale."""
    scores = [
        ReferenceBank(detector, np.random.default_rng(seed).normal(3, 1, size=(3, 2, 4)), np.full(3, "source", object))
        for seed in range(20)
    ]
    assert np.abs([bank.train_scores for bank in scores]).max() < 1e6


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
    unknown = clips.set_column(4, "domain", pa.nulls(clips.num_rows, pa.string()))
    with pytest.raises(InputError, match="fan section 0: the domain of a training clip is not known"):
        score_table(unknown, embeddings, KnnSpec(), {})
