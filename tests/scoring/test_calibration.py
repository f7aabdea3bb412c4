import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from scoring.calibration import (
    METHODS,
    calibrate,
    gamma,
    location_scale,
    recalibrate,
    tail,
    transductive_normalisation,
)
from scoring.errors import InputError
from scoring.table import with_scores
from tests.tables import make_table

each_method = pytest.mark.parametrize("method", METHODS)

# What a machine's scores may look like: sizes and shapes have nothing in common.
DRAWS = {
    "exponential": lambda rng, n: rng.exponential(3.0, n),
    "normal": lambda rng, n: rng.normal(-70, 0.01, n),
    "chi": lambda rng, n: np.sqrt(rng.chisquare(200, n)),
    "two modes": lambda rng, n: rng.normal(size=n) + 5 * (rng.random(n) < 0.3),
}
# How far the share of normals above 1.28 and 2.33 may be from 10 % and 1 % with the challenge's 1000 clips.
FITS = [(tail, DRAWS, 0.025, 0.007), (gamma, ["exponential", "normal", "chi"], 0.025, 0.007)]
FITS += [(location_scale, ["normal", "chi"], 0.025, 0.007)]


@pytest.mark.parametrize(("function", "names", "tenth", "hundredth"), FITS)
def test_calibrated_normals_look_alike_on_every_machine(function, names, tenth, hundredth):
    rng = np.random.default_rng(0)
    for name in names:
        calibrated = function(DRAWS[name](rng, 1000), DRAWS[name](rng, 20_000))
        assert np.mean(calibrated > stats.norm.isf(0.1)) == pytest.approx(0.1, abs=tenth), name
        assert np.mean(calibrated > stats.norm.isf(0.01)) == pytest.approx(0.01, abs=hundredth), name
        if function is tail:
            assert stats.kstest(calibrated, "norm").statistic < 0.05


@each_method
def test_ten_clips_are_enough_for_a_rough_scale(method):
    rng = np.random.default_rng(1)
    shares = [np.mean(METHODS[method](rng.gamma(4, size=10), rng.gamma(4, size=500)) > 1.2816) for _ in range(200)]
    assert np.mean(shares) == pytest.approx(0.13, abs=0.04)


scores = st.lists(st.integers(-5, 20), min_size=2, max_size=40).filter(lambda x: len(set(x)) > 1)


@each_method
@given(train=scores)
@settings(max_examples=100, deadline=None)
def test_order_is_kept_and_nothing_is_infinite(method, train):
    line = np.linspace(-300, 300, 2001)
    found = METHODS[method](np.array(train, float), line)
    assert np.isfinite(found).all()
    assert (np.diff(found) > -1e-12).all()
    outside = (line > max(train) + 0.1) | (line < min(train) - 0.1)
    rising = np.diff(found) > 0
    assert rising[outside[1:] & outside[:-1]].all()


@each_method
@given(train=scores, scale=st.floats(0.01, 100), shift=st.floats(-50, 50))
@settings(max_examples=50, deadline=None)
def test_units_do_not_matter(method, train, scale, shift):
    train, line = np.array(train, float), np.linspace(-30, 30, 50) + 0.123
    expected = METHODS[method](train, line)
    np.testing.assert_allclose(METHODS[method](train * scale + shift, line * scale + shift), expected, atol=1e-6)


@each_method
def test_machines_are_calibrated_each_by_its_training_rows(method):
    clips = make_table(train=400, per_cell=200)
    scale = np.where(clips["machine"].to_numpy() == "fan", 1.0, 50.0)
    score = clips["score"].to_numpy() * scale + scale
    calibrated = calibrate(clips, score, method)
    test = clips["split"].to_numpy() == "test"
    normal = (clips["condition"].to_numpy() == "normal") & test
    for machine in ("fan", "pump"):
        own = calibrated[normal & (clips["machine"].to_numpy() == machine)]
        assert abs(own.mean()) < 0.2
        assert own.std() == pytest.approx(1, abs=0.15)
    np.testing.assert_array_equal(calibrate(clips, score + 1000 * test, method)[~test], calibrated[~test])


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


@each_method
def test_stored_calibration_is_kept_while_it_follows_from_the_scores(method):
    clips = make_table()
    score = clips["score"].to_numpy()
    table = with_scores(clips, score, calibrate(clips, score, method), {})
    calibrated, stale = recalibrate(table)
    assert stale == []
    np.testing.assert_array_equal(calibrated, table["calibrated"].to_numpy())

    # One machine's scores are replaced, and its calibrated column stays.
    changed = np.where(clips["machine"].to_numpy() == "pump", score[::-1], score)
    calibrated, stale = recalibrate(with_scores(clips, changed, table["calibrated"].to_numpy(), {}))
    assert stale == ["pump"]
    np.testing.assert_allclose(calibrated, calibrate(clips, changed, method))


@pytest.mark.parametrize("change", [lambda score: score * 1e-200, lambda score: score * 1e-3 + 1e12])
def test_scores_that_vary_too_little_for_a_double_are_not_called_equal(change):
    clips = make_table(["fan"])
    with pytest.raises(InputError, match=r"vary by only .*; subtract an offset or multiply them"):
        calibrate(clips, change(clips["score"].to_numpy()))
