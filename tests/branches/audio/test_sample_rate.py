import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from branches.audio.sample_rate import at_16_khz, resampled_length
from scoring.errors import InputError

RATES = st.integers(4_000, 384_000) | st.sampled_from([8_000, 22_050, 44_100, 48_000, 96_000])


# Just below 8 kHz a filter that falls off early makes an anomaly of a normal clip.
def tone(frequency, rate):
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(rate) / rate)).astype(np.float32)[:, None]


@settings(max_examples=50, deadline=None)
@given(rate=RATES, share=st.floats(0.003, 0.49))
@example(rate=48_000, share=7_895 / 48_000)
def test_tones_below_8_khz_stay_and_those_above_go(rate, share):
    frequency = share * rate
    resampled, middle = at_16_khz(tone(frequency, rate), rate, "clip"), slice(2_000, -2_000)
    if frequency < 7_900:
        np.testing.assert_allclose(resampled[middle], tone(frequency, 16_000)[middle], atol=2e-3)
    elif frequency > 8_300:
        assert np.sqrt(2 * np.square(resampled[middle].astype(float)).mean()) < 0.5e-3  # 60 dB


@settings(max_examples=50, deadline=None)
@given(rate=RATES, frames=st.integers(1, 20_000), channels=st.integers(1, 3))
def test_any_rate_gives_the_stated_length_and_keeps_a_constant_of_each_channel(rate, frames, channels):
    constants = np.arange(1, channels + 1) / 4
    resampled = at_16_khz(np.full((frames, channels), constants, np.float32), rate, "clip")
    assert resampled_length(frames, rate) == int(frames * 16_000 / rate + 0.5)
    assert resampled.shape == (resampled_length(frames, rate), channels)
    assert resampled.dtype == np.float32
    assert np.isfinite(resampled).all()
    if frames > 0.05 * rate:
        quarter = len(resampled) // 4
        assert resampled[quarter:-quarter] == pytest.approx(
            np.tile(constants, (len(resampled) - 2 * quarter, 1)), rel=0.08
        )


@pytest.mark.parametrize("rate", [1, 3_999, 384_001, 10**9])
def test_impossible_rates_are_refused(rate):
    with pytest.raises(InputError, match=f"clip.wav: a sampling rate of {rate} Hz; it must be between 4 and 384 kHz"):
        at_16_khz(np.zeros((100, 1), np.float32), rate, "clip.wav")
