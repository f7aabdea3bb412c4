import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from branches.audio.sample_rate import at_16_khz, resampled_length
from branches.frontend import fbank
from scoring.errors import InputError


def tone(frequency, rate, seconds=1.0):
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)).astype(np.float32)[:, None]


def level_in_db(samples):
    """Of the middle, against a sine of amplitude 0.5."""
    middle = samples[len(samples) // 8 : -len(samples) // 8]
    return 20 * np.log10(np.sqrt(2 * np.mean(middle.astype(float) ** 2)) / 0.5 + 1e-12)


@settings(max_examples=60, deadline=None)
@given(rate=st.integers(4_000, 384_000), share=st.floats(0.003, 0.49))
def test_tones_below_8_khz_stay_as_they_are(rate, share):
    frequency = share * min(rate, 16_000)
    resampled = at_16_khz(tone(frequency, rate), rate, "clip")
    expected = tone(frequency, 16_000)[: len(resampled)]
    middle = slice(len(expected) // 8, -len(expected) // 8)
    np.testing.assert_allclose(resampled[middle], expected[middle], atol=2e-3)


@settings(max_examples=30, deadline=None)
@given(rate=st.integers(20_000, 384_000), share=st.floats(0, 1))
def test_tones_above_8_khz_are_gone(rate, share):
    frequency = 8_300 + share * (0.49 * rate - 8_300)
    assert level_in_db(at_16_khz(tone(frequency, rate), rate, "clip")) < -60


def test_the_mel_bands_of_a_sound_do_not_depend_on_the_rate_it_was_played_at():
    # The uppermost bands are where a filter that falls off early makes a normal clip look like an anomaly.
    noise = np.random.default_rng(0).normal(0, 0.1, (32_000, 1)).astype(np.float32)
    spectrum = np.fft.rfft(noise[:, 0])
    at_48 = np.fft.irfft(np.pad(3 * spectrum, (0, 32_000)), 96_000).astype(np.float32)[:, None]
    returned = at_16_khz(at_48, 48_000, "clip")
    bands, original = (fbank(torch.from_numpy(x.T.copy())).numpy()[0, 5:-5] for x in (returned, noise))
    assert np.abs((bands - original).mean(axis=0)).max() < 0.01


@settings(max_examples=60, deadline=None)
@given(rate=st.integers(4_000, 384_000), frames=st.integers(1, 20_000), channels=st.integers(1, 3))
def test_any_rate_gives_the_stated_length_and_keeps_a_constant(rate, frames, channels):
    constant = np.full((frames, channels), 0.25, np.float32)
    resampled = at_16_khz(constant, rate, "clip")
    assert resampled.shape == (resampled_length(frames, rate), channels)
    assert resampled.dtype == np.float32
    assert np.isfinite(resampled).all()
    if frames > 0.05 * rate:
        quarter = len(resampled) // 4
        np.testing.assert_allclose(resampled[quarter:-quarter], 0.25, atol=0.02)


@pytest.mark.parametrize("rate", [1, 3_999, 384_001, 10**9])
def test_impossible_rates_are_refused(rate):
    with pytest.raises(InputError, match=f"clip.wav: a sampling rate of {rate} Hz; it must be between 4 and 384 kHz"):
        at_16_khz(np.zeros((100, 1), np.float32), rate, "clip.wav")
