import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.calibration import calibrate, location_scale, recalibrate, transductive_normalisation
from scoring.errors import InputError
from scoring.table import with_scores
from tests.tables import make_table

scores = st.lists(st.integers(-5, 20), min_size=2, max_size=40).filter(lambda x: len(set(x)) > 1)


@given(train=scores, scale=st.floats(0.01, 100), shift=st.floats(-50, 50))
@settings(max_examples=50, deadline=None)
def test_units_do_not_matter_and_order_is_kept(train, scale, shift):
    train, line = np.array(train, float), np.linspace(-30, 30, 50) + 0.123
    expected = location_scale(train, line)
    assert (np.diff(expected) > 0).all()
    np.testing.assert_allclose(location_scale(train * scale + shift, line * scale + shift), expected, atol=1e-6)


def test_machines_are_calibrated_each_by_its_training_rows():
    clips = make_table(train=400, per_cell=200)
    scale = np.where(clips["machine"].to_numpy() == "fan", 1.0, 50.0)
    score = clips["score"].to_numpy() * scale + scale
    calibrated = calibrate(clips, score)
    test = clips["split"].to_numpy() == "test"
    normal = (clips["condition"].to_numpy() == "normal") & test
    for machine in ("fan", "pump"):
        own = calibrated[normal & (clips["machine"].to_numpy() == machine)]
        assert abs(own.mean()) < 0.2
        assert own.std() == pytest.approx(1, abs=0.15)
    np.testing.assert_array_equal(calibrate(clips, score + 1000 * test)[~test], calibrated[~test])


def test_nothing_to_calibrate_on():
    with pytest.raises(InputError, match="machine fan section 0 has 1 training clips"):
        calibrate(make_table(["fan"], train=1), np.arange(25.0))
    table = make_table(["fan"], train=0)
    with pytest.raises(InputError, match="has 0 training clips"):
        calibrate(table, table["score"].to_numpy())
    with pytest.raises(InputError, match="all 12 training scores are equal"):
        calibrate(make_table(["fan"]), np.full(36, 0.1))


def test_transductive_normalisation_is_of_the_test_rows_of_each_machine():
    table = transductive_normalisation(make_table())
    test = table["split"].to_numpy() == "test"
    for machine in ("fan", "pump"):
        own = table["calibrated"].to_numpy()[test & (table["machine"].to_numpy() == machine)]
        assert own.mean() == pytest.approx(0)
        assert own.std(ddof=1) == pytest.approx(1)
    with pytest.raises(InputError, match="fan section 0 has 0 test clips"):
        transductive_normalisation(make_table(["fan"], per_cell=0))


def test_a_stored_calibration_that_does_not_follow_from_the_scores_is_named():
    clips = make_table()
    score = clips["score"].to_numpy()
    table = with_scores(clips, score, calibrate(clips, score), {})
    calibrated, stale = recalibrate(table)
    assert stale == []
    np.testing.assert_array_equal(calibrated, table["calibrated"].to_numpy())

    # One machine's scores are replaced, and its calibrated column stays.
    changed = np.where(clips["machine"].to_numpy() == "pump", score[::-1], score)
    calibrated, stale = recalibrate(with_scores(clips, changed, table["calibrated"].to_numpy(), {}))
    assert stale == ["pump"]
    np.testing.assert_allclose(calibrated, calibrate(clips, changed))


@pytest.mark.parametrize("change", [lambda score: score * 1e-200, lambda score: score * 1e-3 + 1e12])
def test_scores_that_vary_too_little_for_a_double_are_not_called_equal(change):
    clips = make_table(["fan"])
    with pytest.raises(InputError, match=r"vary by only .*; subtract an offset or multiply them"):
        calibrate(clips, change(clips["score"].to_numpy()))
