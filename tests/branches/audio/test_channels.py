import numpy as np
import pytest
import soundfile
from scipy.signal import lfilter

from branches.audio.cache import open_cache
from branches.audio.channels import cancel, with_cancellation
from branches.data.dataset import read_index
from branches.frontend import MIN_SAMPLES


def rms(x):
    return float(np.sqrt(np.square(x).mean()))


def test_what_the_far_microphone_explains_goes_and_the_rest_stays():
    rng = np.random.default_rng(0)
    noise, machine = rng.normal(size=(2, 48000)).astype(np.float32)
    near = (lfilter([0.5, 0.3, -0.2], [1], noise) + 0.2 * machine).astype(np.float32)
    cleaned = cancel(near, noise)
    assert rms(cleaned - 0.2 * machine) < 0.25 * rms(near - 0.2 * machine)
    assert np.corrcoef(cleaned, machine)[0, 1] > 0.9


def test_the_filter_is_the_least_squares_one():
    """What is left is uncorrelated with the far signal, and cancelling again changes little."""
    rng = np.random.default_rng(1)
    far = rng.normal(size=32000).astype(np.float32)
    near = (np.roll(far, 3) * 0.7 + rng.normal(size=32000)).astype(np.float32)
    once = cancel(near, far)
    assert abs(np.corrcoef(once, np.roll(far, 3))[0, 1]) < 0.02
    assert rms(cancel(once, far) - once) < 0.05 * rms(once)


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


@pytest.mark.parametrize("samples", [MIN_SAMPLES, 16000, 96000, 160000, 176000, 192000])
def test_it_is_the_published_cancellation_from_the_first_sample_to_the_last(samples):
    near, far = np.random.default_rng(samples).normal(size=(2, samples)).astype(np.float32) * 0.01
    near += lfilter([0.5, 0.3, -0.2], [1], far).astype(np.float32)
    np.testing.assert_allclose(cancel(near, far), published(near, far), rtol=0, atol=1e-5 * rms(near))


def test_a_frame_that_ends_with_the_clip_makes_no_click():
    near, far = np.random.default_rng(5).normal(size=(2, 5119)).astype(np.float32)
    assert np.abs(published(near, far)[-9:]).max() > 100
    cleaned = cancel(near, far)
    assert np.abs(cleaned[-100:]).max() < np.abs(cleaned).max()
    np.testing.assert_allclose(cleaned[:-150], published(near, far)[:-150], atol=1e-5)


@pytest.mark.parametrize("samples", [MIN_SAMPLES, 5000, 16001])
def test_length_is_kept_and_a_silent_far_microphone_changes_nothing(samples):
    near = np.random.default_rng(2).normal(size=samples).astype(np.float32)
    cleaned = cancel(near, np.zeros(samples, np.float32))
    assert cleaned.shape == near.shape
    np.testing.assert_allclose(cleaned, near, atol=1e-5)


def test_the_cache_holds_it_as_it_is_computed(tmp_path):
    rng = np.random.default_rng(3)
    folder = tmp_path / "data" / "fan" / "train"
    folder.mkdir(parents=True)
    for i, (seconds, channels) in enumerate([(1.0, 2), (0.5, 1), (1.5, 2)]):
        samples = rng.normal(size=(int(seconds * 16000), channels)) * 0.05
        soundfile.write(folder / f"section_00_source_train_normal_{i:04d}_noAttribute.wav", samples, 16000)
    index = read_index(tmp_path / "data")
    plain = open_cache(tmp_path / "data", index, tmp_path / "cache")
    audio = with_cancellation(plain, tmp_path / "cache")
    for clip in range(3):
        near, far = (audio.waveform(clip, channel) for channel in ("near", "far"))
        expected = cancel(near, far) if audio.channels[clip] == 2 else near
        np.testing.assert_array_equal(audio.waveform(clip, "cancel"), expected)
        np.testing.assert_array_equal(
            audio.waveform(clip, "cancel", 100, 3000), audio.waveform(clip, "cancel")[100:3100]
        )
    before = (tmp_path / "cache" / "cancelled" / "samples").stat().st_mtime_ns
    with_cancellation(plain, tmp_path / "cache")
    assert (tmp_path / "cache" / "cancelled" / "samples").stat().st_mtime_ns == before


def test_one_recording_on_both_channels_is_kept_and_told(tmp_path, caplog):
    folder = tmp_path / "data" / "fan" / "train"
    folder.mkdir(parents=True)
    samples = np.random.default_rng(4).normal(size=16000) * 0.05
    for i in range(3):
        name = folder / f"section_00_source_train_normal_{i:04d}_noAttribute.wav"
        soundfile.write(name, np.stack([samples, samples], axis=1), 16000)
    index = read_index(tmp_path / "data")
    audio = with_cancellation(open_cache(tmp_path / "data", index, tmp_path / "cache"), tmp_path / "cache")
    np.testing.assert_array_equal(audio.waveform(0, "cancel"), audio.waveform(0, "near"))
    assert "3 clips have the same sound on both channels" in caplog.text
