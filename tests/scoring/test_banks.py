import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.banks import ReferenceBank, score_table, standardised
from scoring.detectors import BandKnnSpec, KnnSpec
from scoring.errors import InputError
from scoring.metrics import official_metrics
from tests.scoring.detectors import DETECTORS
from tests.tables import make_table

CLIPS = make_table(per_cell=10, train=30)


@pytest.fixture(scope="module")
def embeddings():
    """Of `CLIPS`: anomalies lie off the normals' line; the target domain lies elsewhere on it."""
    rng = np.random.default_rng(0)
    domain, condition = CLIPS["domain"].to_numpy(), CLIPS["condition"].to_numpy()
    X = rng.normal(size=(CLIPS.num_rows, 2, 5)) * [3, 1, 1, 1, 1] + 5
    X[..., 0] += 20 * (domain == "target")[:, None]
    X[..., 1] -= 12 * (condition == "anomaly")[:, None]
    return X.astype(np.float32)


def unknown(row):
    """`CLIPS` without the domain of one of them."""
    domain = CLIPS["domain"].to_pylist()
    domain[row] = None
    return CLIPS.set_column(4, "domain", pa.array(domain))


def by_clip(clips, embeddings, detector):
    return score_table(clips, embeddings, detector, {}).to_pandas().set_index(["machine", "clip"])


@given(detector=DETECTORS)
@settings(max_examples=25, deadline=None)
def test_anomalies_score_higher_in_both_domains(embeddings, detector):
    for values in official_metrics(score_table(CLIPS, embeddings, detector, {})).machines.values():
        assert min(values.auc_source, values.auc_target) > 75


@given(detector=DETECTORS, random=st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_nothing_that_is_hidden_reaches_a_score(embeddings, detector, random):
    """Neither labels, nor domains of test clips, nor the other test clips, nor the order of the rows."""
    rows = [i for i, split in enumerate(CLIPS["split"].to_pylist()) if split == "train" or random.random() < 0.5]
    random.shuffle(rows)
    kept, test = CLIPS.take(rows), CLIPS["split"].to_numpy()[rows] == "test"
    of_no_bank = test | detector.pools_domains
    for column, hidden in (("condition", np.full(len(rows), True)), ("domain", of_no_bank)):
        values = kept[column].to_numpy().copy()
        values[hidden] = random.sample(list(values[hidden]), int(hidden.sum()))
        values[test & (np.arange(len(rows)) % 3 == 0)] = None
        kept = kept.set_column(kept.column_names.index(column), column, pa.array(values, pa.string()))
    whole, few = by_clip(CLIPS, embeddings, detector), by_clip(kept, embeddings[rows], detector)
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


@given(DETECTORS, st.integers(3, 9), st.integers(0, 2), st.booleans(), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_few_clips_and_copies_give_no_score_that_is_rounding(detector, source, target, copied, seed):
    """Without the third of three, two clips are as far from each other: they tell no scale."""
    X = np.random.default_rng(seed).normal(3, 1, size=(source + target, 2, 4))
    if copied and source > 5:
        X[1 : source - 1 : 2] = X[: source - 2 : 2]
    bank = ReferenceBank(detector, X, np.repeat(np.array(["source", "target"], object), [source, target]))
    assert np.abs([*bank.train_scores, *bank.scores(X), *bank.scores(X + 1)]).max() < 1e6


def test_bands_are_one_vector_unless_they_are_compared(embeddings):
    flat = score_table(CLIPS, embeddings.reshape(len(embeddings), -1), KnnSpec(), {})
    assert score_table(CLIPS, embeddings, KnnSpec(), {}).equals(flat)
    assert not score_table(CLIPS, embeddings, BandKnnSpec(), {})["score"].equals(flat["score"])


@pytest.mark.parametrize(
    ("clips", "change", "message"),
    [
        (CLIPS, lambda X: np.where(np.arange(len(X)) == 3, np.nan, X.T).T, f"of fan/{CLIPS['clip'][3]} is not finite"),
        (CLIPS, lambda X: np.where(X.max() == X, np.inf, X), r"the embedding of \w+/.*wav is not finite"),
        (CLIPS, lambda X: X[:, 0], "band_knn compares frequency bands, but an embedding is one vector"),
        (CLIPS, lambda X: X * 0 + X[:1], "machine fan section 0: .*equal"),
        (make_table(["fan"], 15, train=2), lambda X: X[:62], "fan section 0: 2 training clips; .* needs at least 3"),
        (unknown(-1), lambda X: X, "pump section 0: the domain of a training clip is not known"),
    ],
)
def test_what_cannot_be_scored_is_named(embeddings, clips, change, message):
    with pytest.raises(InputError, match=message):
        score_table(clips, change(embeddings), BandKnnSpec(), {})
