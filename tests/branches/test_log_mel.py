import numpy as np

from branches.audio.cache import in_memory
from branches.frontend import FBANK_STD
from branches.log_mel import BANDS, log_mel_statistics

RNG = np.random.default_rng(0)


def noise(level, samples=16_000):
    return RNG.normal(0, level, (samples, 2)).astype(np.float32)


def test_a_clips_statistics_are_its_own():
    clips = [noise(0.01), noise(0.02, 20_000), noise(0.03)]
    statistics = log_mel_statistics(in_memory(clips))
    assert statistics.shape == (3, 2 * BANDS)
    np.testing.assert_allclose(log_mel_statistics(in_memory(clips[1:2]))[0], statistics[1], atol=1e-6)


def test_the_level_moves_the_means_and_leaves_the_deviations():
    clip = noise(0.01)
    quiet, loud = log_mel_statistics(in_memory([clip, 2 * clip]))
    moved = loud[:BANDS] - quiet[:BANDS]
    # One of Kaldi's lowest filters lies between two bins of the spectrum and hears nothing.
    np.testing.assert_allclose(np.sort(moved)[1:], np.log(4) / (2 * FBANK_STD), atol=1e-3)
    np.testing.assert_allclose(loud[BANDS:], quiet[BANDS:], atol=1e-3)


def test_the_near_channel_alone_is_heard():
    clip, other = noise(0.01), noise(0.05)
    mixed = np.stack([clip[:, 0], other[:, 1]], axis=1)
    np.testing.assert_array_equal(*log_mel_statistics(in_memory([clip, mixed])))
