import numpy as np
import pyarrow as pa
import pytest

from fusion.scales import CALIBRATED, MINIMUM, RANK, combined, contributions, from_scale, is_scale, on_scale
from scoring.calibration import transductive_normalisation
from scoring.table import conform
from tests.tables import make_table


def ranks(table):
    return on_scale(RANK, table, table["score"].to_numpy())


def test_a_rank_is_the_share_of_training_clips_below():
    table = make_table(("fan",), 6, 10)
    train = table["split"].to_numpy() == "train"
    score = table["score"].to_numpy()
    expected = [((score[train] < s).sum() + (score[train] == s).sum() / 2) / 10 for s in score]
    assert ranks(table) == pytest.approx(np.array(expected))
    assert on_scale(CALIBRATED, table, score) is score


def test_test_clips_do_not_rank_each_other():
    table = make_table(("fan",), 6, 10)
    few = (table["split"].to_numpy() == "train") | (np.arange(len(table)) == 0)
    alone = conform(table.filter(pa.array(few)))
    assert ranks(table)[few] == pytest.approx(ranks(alone))


SCALES = [CALIBRATED, RANK, MINIMUM, "soft_minimum 0.5", "soft_minimum 4", "generalised_mean -1", "generalised_mean 2"]


@pytest.mark.parametrize("scale", SCALES)
def test_there_are_these_scales_and_no_others(scale):
    assert is_scale(scale)
    for nonsense in (scale + " x", "maximum", "soft_minimum", "soft_minimum 0", "generalised_mean nan", None):
        assert not is_scale(nonsense)


@pytest.mark.parametrize("scale", SCALES)
def test_a_kind_of_mean_of_means_is_one_of_all(scale):
    """What lets weights of the levels multiply; and a mean of equal scores is that score."""
    values = np.random.default_rng(0).normal(1, 2, size=(5, 40))
    weights = np.array([0.1, 0.2, 0.2, 0.3, 0.2])
    on = values if scale == RANK else on_scale(scale, None, values)
    inside = [combined(scale, w / w.sum(), part) for w, part in ((weights[:2], on[:2]), (weights[2:], on[2:]))]
    over = combined(scale, np.array([0.3, 0.7]), np.stack(inside))
    np.testing.assert_allclose(combined(scale, weights, on), over)
    assert (np.diff(on[0][np.argsort(values[0])]) >= 0).all()
    parts = contributions(scale, weights, on)
    np.testing.assert_allclose(parts.sum(axis=0), from_scale(scale, combined(scale, weights, on)))


def test_means_by_their_definitions():
    z = np.random.default_rng(1).normal(1, 2, size=(3, 50))
    equal = np.full(3, 1 / 3)

    def mean(scale, weights=equal):
        return from_scale(scale, combined(scale, weights, on_scale(scale, None, z)))

    np.testing.assert_allclose(mean("soft_minimum 0.5"), -0.5 * np.log(np.exp(-z / 0.5).mean(axis=0)))
    positive = np.log1p(np.exp(z))
    np.testing.assert_allclose(mean("generalised_mean 2"), np.sqrt((positive**2).mean(axis=0)))
    np.testing.assert_allclose(mean("generalised_mean -1"), 1 / (1 / positive).mean(axis=0))
    np.testing.assert_array_equal(mean(MINIMUM), z.min(axis=0))
    np.testing.assert_array_equal(mean(MINIMUM, np.array([0.5, 0, 0.5])), z[[0, 2]].min(axis=0))
    np.testing.assert_allclose(mean("soft_minimum 1e-2"), z.min(axis=0), atol=0.02)
    np.testing.assert_allclose(mean("soft_minimum 1e5"), z.mean(axis=0), atol=1e-3)


def test_absurd_scores_stay_finite():
    z = np.array([[-1e6, 0, 1e6], [1e6, -1e6, 1e6]])
    for scale in SCALES[2:]:
        assert np.isfinite(from_scale(scale, combined(scale, np.array([0.5, 0.5]), on_scale(scale, None, z)))).all()


def test_transductive_tables_have_ranks_too():
    table = make_table(("fan",), 6)
    test_rows = transductive_normalisation(table.filter(pa.compute.equal(table["split"], "test")))
    assert sorted(ranks(test_rows)) == pytest.approx((np.arange(24) + 0.5) / 24)
