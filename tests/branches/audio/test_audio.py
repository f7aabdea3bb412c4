import io
import struct
from contextlib import nullcontext

import numpy as np
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from branches.audio import cache as cache_module
from branches.audio import decode, read_clip, read_header
from branches.audio.cache import cached, in_memory, open_cache
from branches.audio.channels import cancel, cancelled_in_memory, with_cancellation
from branches.audio.containers import open_recording
from branches.audio.formats import Format, formats_of, read_formats, write_formats
from branches.audio.sample_rate import at_16_khz, resampled_length
from branches.data.dataset import index_of
from branches.frames import MIN_SAMPLES
from scoring.errors import InputError

SAMPLES = (np.random.default_rng(0).uniform(-0.5, 0.5, (16_000, 2)) * 32768).round().astype(np.int16)


def encoded(samples, kind="WAV", subtype="PCM_16", endian="FILE"):
    content = io.BytesIO()
    soundfile.write(content, samples, 16_000, format=kind, subtype=subtype, endian=endian)
    return content.getvalue()


RECORDINGS = {kind: encoded(SAMPLES, kind) for kind in ("WAV", "WAVEX", "FLAC", "RF64", "W64", "AIFF", "AU", "NIST")}
LOSSY = {"MP3": encoded(SAMPLES, "MP3", "MPEG_LAYER_III"), "OGG": encoded(SAMPLES, "OGG", "VORBIS")}
RECORDINGS |= {"RIFX": encoded(SAMPLES, endian="BIG"), **LOSSY}
WAV, FLAC = RECORDINGS["WAV"], RECORDINGS["FLAC"]
RATES = st.integers(4_000, 384_000) | st.sampled_from([8_000, 22_050, 44_100, 48_000, 96_000])


def with_lengths(riff, data, content=WAV):
    at = content.index(b"data") + 4
    return content[:4] + struct.pack("<I", riff) + content[8:at] + struct.pack("<I", data) + content[at + 4 :]


@pytest.mark.parametrize("container", RECORDINGS)
def test_a_whole_recording_is_read(container, tmp_path):
    (tmp_path / "clip.wav").write_bytes(RECORDINGS[container])
    samples, header = read_clip(tmp_path / "clip.wav"), read_header(tmp_path / "clip.wav")
    assert (header.rate, header.channels) == (16_000, 2)
    if container in LOSSY:
        assert len(samples) == pytest.approx(16_000, abs=1_200)
    else:
        assert (header.frames, header.subtype) == (16_000, "PCM_16")
        np.testing.assert_array_equal(samples, SAMPLES / np.float32(32768))


@settings(max_examples=50, deadline=None)
@given(container=st.sampled_from(["WAV", "WAVEX", "FLAC", "MP3"]), share=st.floats(0, 0.99))
def test_a_wav_flac_or_mp3_that_was_cut_off_is_named(container, share):
    content = RECORDINGS[container]
    with pytest.raises(InputError, match=r"^clip: (truncated|not a readable recording)"):
        decode(content[: int(share * len(content))], "clip")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it seeks before an AIFF's beginning
@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=200), container=st.sampled_from(list(RECORDINGS)), kept=st.integers(0, 60))
def test_bytes_that_are_no_recording_are_named_in_one_line(content, container, kept):
    with pytest.raises(InputError, match=r"^clip: [^\n]+$"):
        decode(RECORDINGS[container][:kept] + content, "clip")


def test_what_cannot_be_used_is_named_and_lengths_unknown_to_a_writer_and_tags_behind_the_sound_are_no_fault(tmp_path):
    for content, message in (
        (encoded(SAMPLES[:0]), "the recording is empty; replace or remove it$"),
        (encoded(SAMPLES[: MIN_SAMPLES - 1]), r"0.175 s is shorter than one patch \(0.175 s\); remove it$"),
        (encoded(np.append(SAMPLES[:, 0], np.nan), subtype="FLOAT"), "a sample is not a finite number; replace or"),
        (FLAC[:21] + b"\xff" * 5 + FLAC[26:], "truncated"),  # half a terabyte, by its header
        (with_lengths(19_992, 64_000)[:20_000], "truncated: 20000 of 64044 bytes; copy it again$"),  # once mended
        (with_lengths(64_236, 64_000) + bytes(100), "truncated: 64144 of 64244 bytes"),  # in a chunk behind the sound
        (WAV[:36] + b"note\3\0\0\0odd\0" + WAV[36:20_000], "truncated: 20012 of 64056 bytes"),  # behind an odd chunk
        (with_lengths(32_036, 32_000) + bytes(130_000), "its header gives 32044 of 194044 bytes, as after a recorder"),
    ):
        with pytest.raises(InputError, match=f"^clip: {message}"):
            decode(content, "clip")
    assert len(decode(encoded(SAMPLES[:MIN_SAMPLES]), "clip")) == MIN_SAMPLES
    for read in (read_clip, read_header):
        with pytest.raises(InputError, match=r"absent\.wav: cannot be read \(No such file or directory\); replace"):
            read(tmp_path / "absent.wav")
    with (tmp_path / "long.wav").open("w+b") as file:  # 2**32 bytes more than its header can say, a hole
        file.write(WAV)
        file.truncate(len(WAV) + 2**32)
        with pytest.raises(InputError, match=r"long.wav: its header gives 64044 of 4295031340 bytes.*RF64"):
            open_recording(file, "long.wav")
    for unknown in (0, 0x7FFF_F000, 0x7FFF_F024, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0xFFFF_FFDB):
        for riff in (unknown, min(unknown + 36, 0xFFFF_FFFF)):
            np.testing.assert_array_equal(decode(with_lengths(riff, unknown), "clip"), SAMPLES / np.float32(32768))
    for behind in (b"LIST" + bytes(1_000), b"ID3" + 100_000 * b"x", bytes(100_000)):
        np.testing.assert_array_equal(decode(WAV + behind, "clip"), SAMPLES / np.float32(32768))


@settings(max_examples=50, deadline=None)
@given(rate=RATES, share=st.floats(0.003, 0.49))
@example(rate=48_000, share=7_895 / 48_000)  # where a filter that falls off early makes an anomaly of a normal clip
def test_tones_below_8_khz_stay_and_those_above_go(rate, share):
    def tone(frequency, rate):
        return (0.5 * np.sin(2 * np.pi * frequency * np.arange(rate) / rate)).astype(np.float32)[:, None]

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
    length = int(frames * 16_000 / rate + 0.5)
    assert (resampled_length(frames, rate), resampled.shape) == (length, (length, channels))
    assert resampled.dtype == np.float32
    assert np.isfinite(resampled).all()
    if frames > 0.05 * rate:
        assert np.abs(resampled[length // 4 : -(length // 4)] / constants - 1).max() < 0.08


def test_a_recording_does_not_begin_with_a_step_and_impossible_rates_are_refused():
    constant = at_16_khz(np.full((20_000, 1), 0.25, np.float32), 48_000, "clip")
    np.testing.assert_allclose(constant, 0.25, rtol=1e-5)
    for rate in (1, 3_999, 384_001, 10**9):
        with pytest.raises(InputError, match=f"clip: a sampling rate of {rate} Hz; it must be between 4 and 384 kHz"):
            at_16_khz(np.zeros((100, 1), np.float32), rate, "clip")


NAME = "fan/train/section_00_source_train_normal_{:04d}_noAttribute.wav"
FAN = Format(seconds=(1.0, 1.2), channels=(2,))


def write(root, number, samples, rate=16_000, subtype="FLOAT"):
    (root / "fan" / "train").mkdir(parents=True, exist_ok=True)
    soundfile.write(root / NAME.format(number), samples, rate, subtype=subtype)


def noise(n=8_000, channels=2, seed=0):
    return np.random.default_rng(seed).normal(size=(channels, n)).astype(np.float32).T


def cache_of(root, clips, folder="x"):
    return open_cache(root, index_of(map(NAME.format, range(clips))), root / "cache" / folder)


def test_cached_clips_are_the_files_whatever_their_lengths_and_rates(dataset, index, audio, tmp_path, caplog):
    assert audio.samples.dtype == np.int16
    for i, path in enumerate(index["path"].to_pylist()):
        samples, _ = soundfile.read(dataset / path, dtype="float32")
        np.testing.assert_array_equal(audio.waveform(i, "near"), samples[:, 0])
        np.testing.assert_array_equal(audio.waveform(i, "far", 300, 500), samples[300:800, 1])
        np.testing.assert_allclose(audio.waveform(i, "mean"), samples.mean(axis=1), atol=1e-7)
    loud = np.linspace(-32_768, 32_767, 4_000).astype(np.int16)[:, None]
    write(tmp_path, 0, loud, subtype="PCM_16")
    np.testing.assert_array_equal(cache_of(tmp_path, 1, "loud").samples, loud[:, 0])
    write(tmp_path, 0, np.sin(2 * np.pi * 440 * np.arange(32_000) / 32_000), rate=32_000, subtype="PCM_16")
    write(tmp_path, 1, noise(5_000), subtype="PCM_16")
    cache = cache_of(tmp_path, 2, "exact but for the rate")
    assert cache.lengths.tolist() == [16_000, 5_000]
    expected = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(cache.waveform(0, "near")[500:-500], expected[500:-500], atol=2e-3)
    assert f"1 of 2 clips are not at 16000 Hz and are resampled, e.g. {NAME.format(0)}" in caplog.messages
    write(tmp_path, 0, noise(4_000, 1))
    cache = cache_of(tmp_path, 2)
    assert cache.lengths.tolist() == [4_000, 5_000]
    for channel in ("near", "far", "mean"):
        np.testing.assert_array_equal(cache.waveform(0, channel), noise(4_000, 1)[:, 0])


def test_the_cache_is_made_once_of_one_data_set_and_whole_where_locks_do_not_hold(tmp_path, monkeypatch):
    write(tmp_path, 0, noise())
    first = cache_of(tmp_path, 1).samples.copy()
    (tmp_path / NAME.format(0)).unlink()
    np.testing.assert_array_equal(cache_of(tmp_path, 1).samples, first)
    with pytest.raises(InputError, match="x: the audio cache is of another data set; delete the folder and run again"):
        cache_of(tmp_path, 2)
    write(tmp_path, 0, noise())
    (tmp_path / NAME.format(1)).write_bytes(b"RIFF\0\0\0\0no sound")
    with pytest.raises(InputError, match=f"{NAME.format(1)}: not a readable recording"):
        cache_of(tmp_path, 2, "y")
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["x", "x.lock", "y.lock"]

    def slowly():
        faster.append(cached(tmp_path / "z" / "z", lambda: [noise(seed=1)]))
        yield noise(seed=2)

    faster = []
    monkeypatch.setattr(cache_module, "locked", lambda path: nullcontext())
    for cache in (cached(tmp_path / "z" / "z", slowly), *faster):
        np.testing.assert_array_equal(cache.samples, noise(seed=1).ravel())
    assert [path.name for path in (tmp_path / "z").iterdir()] == ["z"]


def test_a_run_keeps_its_training_clips_formats_and_tells_what_a_recording_has_unlike_them(tmp_path):
    names = [NAME.format(i) for i in range(3)]
    index = index_of(["fan/test/section_00_0000.wav", *names, names[0].replace("fan", "pump")])
    clips = in_memory([noise(n, c) for n, c in ((144_000, 1), (19_200, 2), (16_000, 2), (17_600, 2), (64_000, 1))])
    write_formats(tmp_path, clips, index)
    assert read_formats(tmp_path) == {"fan": FAN, "pump": Format(seconds=(4.0, 4.0), channels=(1,))}
    assert read_formats(tmp_path) == formats_of(clips, index)
    for damaged in ("{", '{"fan": 1}'):
        (tmp_path / "formats.json").write_text(damaged)
        assert read_formats(tmp_path) == read_formats(tmp_path / "absent") == {}
    assert FAN.differences(noise(10_560)) == "0.66 s long, those 1 to 1.2 s"
    assert FAN.differences(noise(28_960, 1)) == "1.81 s long, those 1 to 1.2 s; of 1 channels, those of 2"
    assert FAN.differences(noise(10_720)) == FAN.differences(noise(28_640)) == ""
    other, both = Format(seconds=(0.5, 1.1), channels=(1, 2)), Format(seconds=(0.5, 1.2), channels=(1, 2))
    assert other.joined(FAN) == FAN.joined(other) == both


def published(near, far, window=1024, hop=512):
    """The published cancellation, written down once more frame by frame in double precision."""
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


def test_cancellation_is_the_published_one_without_a_click_at_the_end_and_of_two_channels_only(tmp_path, caplog):
    for samples in (MIN_SAMPLES, 16_000, 96_000, 176_000):
        near, far = 0.01 * noise(samples).T
        near += lfilter([0.5, 0.3, -0.2], [1], far).astype(np.float32)
        np.testing.assert_allclose(cancel(near, far), published(near, far), rtol=0, atol=1e-5 * near.std())
        np.testing.assert_allclose(cancel(near, 0 * near), near, rtol=0, atol=1e-5 * near.std())
        assert not cancel(0 * near, 0 * near).any()
    near, far = noise(5_119, seed=5).T
    cleaned, clicking = cancel(near, far), published(near, far)
    assert np.abs(clicking[-9:]).max() > 100
    assert np.abs(cleaned[-100:]).max() < np.abs(cleaned).max()
    np.testing.assert_allclose(cleaned[:-150], clicking[:-150], atol=1e-5)
    same = noise(9_000, 1).repeat(2, axis=1)
    nearly = same + 1e-2 * noise(9_000, seed=1)  # 40 dB below: still two microphones
    plain = in_memory([noise(16_000), noise(8_000, 1), same, nearly])
    for made in (*(with_cancellation(plain, tmp_path) for _ in range(2)), cancelled_in_memory(plain)):
        for clip, cancels in enumerate([True, False, False, True]):
            near, far = (plain.waveform(clip, channel) for channel in ("near", "far"))
            expected = cancel(near, far) if cancels else near
            np.testing.assert_array_equal(made.waveform(clip, "cancel", 100, 3000), expected[100:3100])
    assert caplog.messages == ["the same sound on both channels: 1 clip, where nothing is cancelled"]  # told once
