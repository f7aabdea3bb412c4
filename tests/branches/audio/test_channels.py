import numpy as np
import pytest
from scipy.signal import lfilter

from branches.audio.cache import in_memory
from branches.audio.channels import cancel, cancelled_in_memory, with_cancellation
from branches.frontend import MIN_SAMPLES


def noise(samples, rows=2, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, samples)).astype(np.float32)


def published(near, far, window=1024, hop=512):
    """The published definition, written down once more frame by frame in double precision."""
    scale = max(np.abs(near).max(), np.abs(far).max()) / 0.9
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    padded = [np.pad(x.astype(float) / scale, window // 2, mode="reflect") for x in (near, far)]
    starts = range(0, len(padded[0]) - window + 1, hop)
    c, f = (np.array([np.fft.rfft(hann * x[s : s + window]) for s in starts]) for x in padded)
    h = (c * f.conj()).sum(axis=0) / ((np.abs(f) ** 2).sum(axis=0) + 1e-12)
    total, weight = np.zeros((2, len(padded[0])))
    for s, frame in zip(starts, c - h * f, strict=True):
        total[s : s + window] += hann * np.fft.irfft(frame, window)
        weight[s : s + window] += hann**2
    within = slice(window // 2, window // 2 + len(near))
    return total[within] / weight[within] * scale


@pytest.mark.parametrize("samples", [MIN_SAMPLES, 16000, 96000, 176000])
def test_it_is_the_published_cancellation_from_the_first_sample_to_the_last(samples):
    near, far = 0.01 * noise(samples)
    near += lfilter([0.5, 0.3, -0.2], [1], far).astype(np.float32)
    np.testing.assert_allclose(cancel(near, far), published(near, far), rtol=0, atol=1e-5 * near.std())
    np.testing.assert_allclose(cancel(near, np.zeros_like(near)), near, rtol=0, atol=1e-5 * near.std())
    assert not cancel(np.zeros_like(near), np.zeros_like(near)).any()


def test_a_frame_that_ends_with_the_clip_makes_no_click():
    near, far = noise(5119, seed=5)
    assert np.abs(published(near, far)[-9:]).max() > 100
    cleaned = cancel(near, far)
    assert np.abs(cleaned[-100:]).max() < np.abs(cleaned).max()
    np.testing.assert_allclose(cleaned[:-150], published(near, far)[:-150], atol=1e-5)


def test_the_channel_is_kept_and_mono_clips_and_copies_stay_as_they_are(tmp_path, caplog):
    stereo, mono, same = noise(16_000).T, noise(8_000, 1).T, noise(9_000, 1).repeat(2, axis=0).T
    nearly = same + 1e-2 * noise(9_000, seed=1).T  # 40 dB below: still two microphones
    plain = in_memory([stereo, mono, same, nearly])
    audio = with_cancellation(plain, tmp_path)
    for made in (audio, with_cancellation(plain, tmp_path), cancelled_in_memory(plain)):
        for clip, cancels in enumerate([True, False, False, True]):
            near, far = (plain.waveform(clip, channel) for channel in ("near", "far"))
            expected = cancel(near, far) if cancels else near
            np.testing.assert_array_equal(made.waveform(clip, "cancel", 100, 3000), expected[100:3100])
    assert caplog.messages == ["1 clips have the same sound on both channels: nothing is cancelled there"]  # told once
