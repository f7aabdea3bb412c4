import io
import struct

import numpy as np
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st

from branches.audio import decode, read_clip, read_header
from branches.audio.containers import open_recording
from branches.audio.sample_rate import at_16_khz, resampled_length
from branches.frames import MIN_SAMPLES
from scoring.errors import InputError

SAMPLES = (np.random.default_rng(0).uniform(-0.5, 0.5, (16_000, 2)) * 32768).round().astype(np.int16)


def encoded(samples, kind="WAV", subtype="PCM_16", endian="FILE"):
    content = io.BytesIO()
    soundfile.write(content, samples, 16_000, format=kind, subtype=subtype, endian=endian)
    return content.getvalue()


RECORDINGS = {kind: encoded(SAMPLES, kind) for kind in ("WAV", "WAVEX", "FLAC", "RF64", "W64", "AIFF", "AU", "NIST")}
RECORDINGS["RIFX"] = encoded(SAMPLES, endian="BIG")
LOSSY = {"MP3": encoded(SAMPLES, "MP3", "MPEG_LAYER_III"), "OGG": encoded(SAMPLES, "OGG", "VORBIS")}
RECORDINGS |= LOSSY
WAV, FLAC = RECORDINGS["WAV"], RECORDINGS["FLAC"]
RATES = st.integers(4_000, 384_000) | st.sampled_from([8_000, 22_050, 44_100, 48_000, 96_000])


def with_lengths(riff, data, content=WAV):
    """A WAV that states other lengths."""
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encoded(SAMPLES[:0]), "the recording is empty; replace or remove it$"),
        (encoded(SAMPLES[: MIN_SAMPLES - 1]), r"0.175 s is shorter than one patch \(0.175 s\); remove it$"),
        (encoded(np.append(SAMPLES[:, 0], np.nan), subtype="FLOAT"), "a sample is not a finite number; replace or"),
        (FLAC[:21] + b"\xff" * 5 + FLAC[26:], "truncated"),  # half a terabyte, by its header
        (with_lengths(19_992, 64_000)[:20_000], "truncated: 20000 of 64044 bytes; copy it again$"),  # once mended
        (with_lengths(64_236, 64_000) + bytes(100), "truncated: 64144 of 64244 bytes"),  # in a chunk behind the sound
        (WAV[:36] + b"note\3\0\0\0odd\0" + WAV[36:20_000], "truncated: 20012 of 64056 bytes"),  # behind an odd chunk
        (with_lengths(32_036, 32_000) + bytes(130_000), "its header gives 32044 of 194044 bytes, as after a recorder"),
    ],
)
def test_what_cannot_be_used_is_named(content, message):
    with pytest.raises(InputError, match=f"^clip: {message}"):
        decode(content, "clip")


def test_the_shortest_clip_is_long_enough_and_an_absent_one_is_named(tmp_path):
    assert len(decode(encoded(SAMPLES[:MIN_SAMPLES]), "clip")) == MIN_SAMPLES
    for read in (read_clip, read_header):
        with pytest.raises(InputError, match=r"absent\.wav: cannot be read \(No such file or directory\)$"):
            read(tmp_path / "absent.wav")


@pytest.mark.parametrize("unknown", [0, 0x7FFF_F000, 0x7FFF_F024, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0xFFFF_FFDB])
def test_lengths_that_a_writer_to_a_pipe_could_not_know_are_no_lengths(unknown):
    for riff in (unknown, min(unknown + 36, 0xFFFF_FFFF)):
        np.testing.assert_array_equal(decode(with_lengths(riff, unknown), "clip"), SAMPLES / np.float32(32768))


def test_a_wav_over_4_gib_whose_length_began_again_is_named(tmp_path):
    with (tmp_path / "long.wav").open("w+b") as file:  # 2**32 bytes more than its header can say, a hole
        file.write(WAV)
        file.truncate(len(WAV) + 2**32)
        with pytest.raises(InputError, match=r"long.wav: its header gives 64044 of 4295031340 bytes.*RF64"):
            open_recording(file, "long.wav")


@pytest.mark.parametrize("behind", [b"LIST" + bytes(1_000), b"ID3" + 100_000 * b"x", bytes(100_000)])
def test_tags_and_padding_behind_the_sound_are_no_fault(behind):
    assert len(decode(WAV + behind, "clip")) == 16_000


def tone(frequency, rate):
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(rate) / rate)).astype(np.float32)[:, None]


@settings(max_examples=50, deadline=None)
@given(rate=RATES, share=st.floats(0.003, 0.49))
@example(rate=48_000, share=7_895 / 48_000)  # where a filter that falls off early makes an anomaly of a normal clip
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
        assert np.abs(resampled[quarter:-quarter] / constants - 1).max() < 0.08


def test_a_recording_does_not_begin_with_a_step():
    constant = at_16_khz(np.full((20_000, 1), 0.25, np.float32), 48_000, "clip")
    np.testing.assert_allclose(constant, 0.25, rtol=1e-5)


@pytest.mark.parametrize("rate", [1, 3_999, 384_001, 10**9])
def test_impossible_rates_are_refused(rate):
    with pytest.raises(InputError, match=f"clip.wav: a sampling rate of {rate} Hz; it must be between 4 and 384 kHz"):
        at_16_khz(np.zeros((100, 1), np.float32), rate, "clip.wav")
