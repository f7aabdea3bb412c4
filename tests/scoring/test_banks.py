import numpy as np
import pyarrow as pa
import pytest

from scoring.banks import FOLDS, cross_fitted_distances, score_group, score_table
from scoring.calibration import calibrate, location_scale, transductive_normalisation
from scoring.decisions import gamma_threshold, thresholds
from scoring.detectors import KnnSpec, MahalanobisSpec
from scoring.errors import InputError
from scoring.metrics import official_metrics
from tests.tables import make_table

DETECTORS = [MahalanobisSpec(), KnnSpec(), KnnSpec(k=3)]
each_detector = pytest.mark.parametrize("detector", DETECTORS, ids=str)


@pytest.fixture
def clips():
    return make_table(per_cell=10, train=30)


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
def test_training_clips_are_not_in_their_own_reference(detector):
    rng = np.random.default_rng(1)
    X, domain = rng.normal(size=(25, 4)), np.array(["source"] * 18 + ["target"] * 7, object)
    held_out = cross_fitted_distances(detector, X, domain)
    for i in (0, 11, 17, 20):
        moved = X.copy()
        fold = [j for j in range(25) if j % FOLDS == i % FOLDS]  # the clips held out together
        moved[fold] += rng.normal(size=(len(fold), 4))
        moved[i] = X[i]
        np.testing.assert_allclose(cross_fitted_distances(detector, moved, domain)[i], held_out[i])


@each_detector
def test_a_tiny_domain_is_neither_drowned_nor_trusted(detector):
    """Normals of a domain with ten clips score about as high as those of one with hundreds."""
    rng = np.random.default_rng(2)
    domain = np.array(["source"] * 300 + ["target"] * 10, object)
    X = rng.normal(size=(310, 8)) + np.where(domain == "target", 30.0, 0.0)[:, None]
    fresh = rng.normal(size=(400, 8)) + 10.0 + np.repeat([-10.0, 20.0], 200)[:, None]
    _, scores = score_group(detector, X + 10.0 - 10.0, domain, fresh)
    assert scores[200:].mean() / scores[:200].mean() == pytest.approx(1, abs=0.35)


@each_detector
def test_one_domain_is_enough(detector):
    X = np.random.default_rng(3).normal([5, 0, 0], 0.3, size=(9, 3))
    train, test = score_group(detector, X, np.array(["source"] * 9, object), np.array([[0.0, 5, 0], [0, 0, -5]]))
    assert train.shape == (9,)
    assert (test > train.max()).all()


@each_detector
def test_a_domain_of_one_clip(detector):
    X = np.random.default_rng(4).normal(size=(9, 3))
    train, test = score_group(detector, X, np.array(["source"] * 8 + ["target"], object), X)
    assert np.isfinite(train).all()
    assert np.isfinite(test).all()
    assert test[8] == pytest.approx(0, abs=1e-6)


def test_bad_input_is_named(clips, embeddings):
    broken = embeddings.copy()
    broken[3, 1] = np.nan
    with pytest.raises(InputError, match=r"the embedding of fan/.*wav is not finite"):
        score_table(clips, broken, MahalanobisSpec(), {})
    lonely = make_table(["fan"], train=1)
    with pytest.raises(InputError, match="fan section 0 has 1 training clips"):
        score_table(lonely, np.ones((lonely.num_rows, 2)), KnnSpec(), {})
    with pytest.raises(InputError, match="training scores are equal"):
        score_table(clips, np.ones_like(embeddings), MahalanobisSpec(), {})


def test_calibrated_normals_look_alike_on_every_machine():
    clips = make_table(train=400, per_cell=200)
    scale = np.where(clips["machine"].to_numpy() == "fan", 1.0, 50.0)
    calibrated = calibrate(clips, clips["score"].to_numpy() * scale + scale)
    normal = (clips["condition"].to_numpy() == "normal") & (clips["split"].to_numpy() == "test")
    for machine in ("fan", "pump"):
        own = calibrated[normal & (clips["machine"].to_numpy() == machine)]
        assert abs(own.mean()) < 0.2
        assert own.std() == pytest.approx(1, abs=0.15)


def test_calibration_keeps_order_and_needs_a_scale():
    train, scores = np.array([1.0, 2.0, 4.0]), np.array([3.0, -1.0, 9.0])
    assert (np.argsort(location_scale(train, scores)) == np.argsort(scores)).all()
    with pytest.raises(InputError, match="machine x has 1 training"):
        location_scale(train[:1], scores, "machine x")


@pytest.mark.parametrize("skewed", [True, False])
def test_threshold_lets_about_a_tenth_of_the_normals_through(skewed):
    rng = np.random.default_rng(5)
    draw = (lambda n: rng.gamma(3.0, 2.0, n) - 4) if skewed else (lambda n: rng.normal(7, 0.1, n))
    assert (draw(20_000) > gamma_threshold(draw(5_000))).mean() == pytest.approx(0.1, abs=0.015)


def test_thresholds_come_from_training_rows_alone():
    table = make_table()
    high = table["score"].to_numpy() + 100.0 * (table["split"].to_numpy() == "test")
    assert thresholds(table.set_column(6, "score", [high])) == thresholds(table)


def test_transductive_normalisation_is_of_the_test_rows_of_each_machine():
    table = transductive_normalisation(make_table())
    test = table["split"].to_numpy() == "test"
    for machine in ("fan", "pump"):
        own = table["calibrated"].to_numpy()[test & (table["machine"].to_numpy() == machine)]
        assert own.mean() == pytest.approx(0)
        assert own.std(ddof=1) == pytest.approx(1)
    with pytest.raises(InputError, match="fan section 0 has 0 test clips"):
        transductive_normalisation(make_table(["fan"], per_cell=0))
