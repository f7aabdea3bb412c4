import numpy as np
import pyarrow as pa
import pytest

from branches.audio.cache import in_memory
from branches.frontend import FBANK_MEAN, FBANK_STD
from branches.log_mel import log_mel_statistics

RNG = np.random.default_rng(0)
CLIPS = pa.table(
    {
        "machine": ["fan"] * 4 + ["pump"] * 3,
        "section": [0] * 7,
        "split": ["train"] * 3 + ["test"] + ["train"] * 3,
    }
)


@pytest.fixture
def statistics():
    clips = [RNG.normal(0, 0.01 * (i + 1), (16_000 + 800 * i, 2)).astype(np.float32) for i in range(7)]
    return log_mel_statistics(in_memory(clips), CLIPS)


def test_training_clips_of_each_machine_are_standardised(statistics):
    assert statistics.shape == (7, 128)
    assert np.isfinite(statistics).all()
    for rows in (slice(0, 3), slice(4, 7)):
        np.testing.assert_allclose(statistics[rows].mean(axis=0), 0, atol=1e-3)
        np.testing.assert_allclose(statistics[rows].std(axis=0), 1, atol=1e-2)


def test_a_test_clip_is_measured_by_the_training_clips_alone(statistics):
    # The loudest of the fan's clips lies above the others in the mean of every band.
    assert (statistics[3, :64] > 1).all()
    louder = RNG.normal(0, 5e-2, (16_000, 2)).astype(np.float32)
    clips = [RNG.normal(0, 1e-2, (16_000, 2)).astype(np.float32) for _ in range(6)]
    with_louder = log_mel_statistics(in_memory([*clips[:3], louder, *clips[3:]]), CLIPS)
    with_other = log_mel_statistics(in_memory([*clips[:3], clips[0], *clips[3:]]), CLIPS)
    np.testing.assert_array_equal(with_louder[[0, 1, 2, 4, 5, 6]], with_other[[0, 1, 2, 4, 5, 6]])


def test_doubling_the_level_moves_the_mean_of_every_band_alike():
    clips = [RNG.normal(0, 1e-2, (16_000, 1)).astype(np.float32) for _ in range(6)]
    values = log_mel_statistics(in_memory([*clips[:3], 2 * clips[0], *clips[3:]]), CLIPS)
    change = (values[3] - values[0])[64:]
    np.testing.assert_allclose(change, 0, atol=0.01)
    assert (values[3] - values[0])[:64].min() > np.log(4) / (2 * FBANK_STD)
    assert FBANK_MEAN > 0
