import numpy as np
import pyarrow as pa
import pytest

from scoring.calibration import calibrate, recalibrate, transductive_normalisation
from scoring.errors import InputError
from scoring.table import conform, with_scores
from tests.tables import make_table

CLIPS = conform(pa.concat_tables([make_table(), make_table(["fan"], section=1, seed=1)]))
SCORE, MACHINE, SECTION, SPLIT = (CLIPS[name].to_numpy() for name in ("score", "machine", "section", "split"))


def standardised(score, split):
    """By the clips of a split, each machine and section by itself."""
    expected = np.empty(len(score))
    for machine, section in (("fan", 0), ("fan", 1), ("pump", 0)):
        group = (machine == MACHINE) & (section == SECTION)
        reference = score[group & (split == SPLIT)]
        expected[group] = (score[group] - np.mean(reference)) / np.std(reference, ddof=1)
    return expected


def test_scores_are_in_standard_deviations_above_the_mean_of_the_training_clips():
    score = SCORE * np.where(MACHINE == "fan", 1, 50) + 7
    np.testing.assert_allclose(calibrate(CLIPS, score), standardised(score, "train"))


def test_transductive_normalisation_is_the_same_by_test_clips_and_keeps_what_is_known():
    table = transductive_normalisation(CLIPS.replace_schema_metadata({"branch_id": "abc"}))
    np.testing.assert_allclose(table["calibrated"].to_numpy(), standardised(SCORE, "test"))
    assert table.schema.metadata == {b"branch_id": b"abc", b"transductive": b"true"}


def test_a_stored_calibration_that_does_not_follow_from_the_scores_is_named():
    fresh = calibrate(CLIPS, SCORE)
    nearly, edited = fresh + 1e-9, fresh + 1e-3 * (MACHINE == "pump")
    for stored, stale in ((nearly, []), (edited, ["pump"]), (np.where(MACHINE == "pump", np.nan, 7), [])):
        calibrated, named = recalibrate(with_scores(CLIPS, SCORE, stored, {}))
        assert named == stale
        np.testing.assert_array_equal(calibrated, fresh)


@pytest.mark.parametrize(
    ("train", "change", "message"),
    [
        (0, lambda score: score, "machine fan section 0 has 0 training clips"),
        (1, lambda score: score, "machine fan section 0 has 1 training clips"),
        (5, lambda score: score * 0 + 0.1, "all 5 training scores are equal"),
        (5, lambda score: score * 1e-200, r"vary by only .*; subtract an offset or multiply them"),
        (5, lambda score: score * 1e-3 + 1e12, r"vary by only .*; subtract an offset or multiply them"),
    ],
)
def test_what_tells_no_scale_is_told(train, change, message):
    table = make_table(["fan"], train=train)
    with pytest.raises(InputError, match=message):
        calibrate(table, change(table["score"].to_numpy()))
    with pytest.raises(InputError, match="fan section 0 has 0 test clips"):
        transductive_normalisation(make_table(["fan"], per_cell=0))
