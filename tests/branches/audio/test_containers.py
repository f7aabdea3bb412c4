import io
import struct

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from branches.audio import decode
from branches.audio.containers import open_recording
from scoring.errors import InputError

SAMPLES = (np.random.default_rng(0).uniform(-0.5, 0.5, (16_000, 2)) * 32768).round().astype(np.int16)
# Format and encoding as libsndfile names them.
CONTAINERS = {
    "wav": ("WAV", "PCM_16", "LITTLE"),
    "rifx": ("WAV", "PCM_16", "BIG"),
    "wavex": ("WAVEX", "PCM_16", "FILE"),
    "rf64": ("RF64", "PCM_16", "FILE"),
    "w64": ("W64", "PCM_16", "FILE"),
    "aiff": ("AIFF", "PCM_16", "FILE"),
    "au": ("AU", "PCM_16", "FILE"),
    "nist": ("NIST", "PCM_16", "FILE"),
    "flac": ("FLAC", "PCM_16", "FILE"),
    "ogg": ("OGG", "VORBIS", "FILE"),
    "mp3": ("MP3", "MPEG_LAYER_III", "FILE"),
}
LOSSY = ("ogg", "mp3")


def recording(container, samples=SAMPLES):
    kind, subtype, endian = CONTAINERS[container]
    content = io.BytesIO()
    soundfile.write(content, samples, 16_000, format=kind, subtype=subtype, endian=endian)
    return content.getvalue()


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_whole_recording_is_read(container):
    decoded = decode(recording(container), "clip")
    if container in LOSSY:
        assert len(decoded) == pytest.approx(16_000, abs=1_200)
    else:
        np.testing.assert_array_equal(decoded, SAMPLES / np.float32(32768))


@settings(max_examples=60, deadline=None)
@given(container=st.sampled_from(["wav", "wavex", "flac"]), share=st.floats(0, 0.99))
def test_a_wav_or_flac_that_was_cut_off_is_named(container, share):
    content = recording(container)
    with pytest.raises(InputError, match=r"^clip: (truncated|not a readable recording)"):
        decode(content[: int(share * len(content))], "clip")


# Of a damaged AIFF libsndfile wants to seek before the beginning.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=200), container=st.sampled_from(list(CONTAINERS)), length=st.integers(0, 60))
def test_bytes_that_are_no_recording_are_an_error_and_no_traceback(content, container, length):
    for damaged in (content, recording(container)[:length], recording(container)[:length] + content):
        with pytest.raises(InputError, match=r"^clip: "):
            decode(damaged, "clip")


def test_a_cut_wav_whose_first_length_was_mended_is_named():
    cut = bytearray(recording("wav")[:20_000])
    cut[4:8] = struct.pack("<I", len(cut) - 8)
    with pytest.raises(InputError, match="clip: truncated: 20000 of 64044 bytes"):
        decode(bytes(cut), "clip")


@pytest.mark.parametrize(
    "placeholder", [0, 0x7FFF_F000, 0x7FFF_F024, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0xFFFF_FFDB]
)
def test_lengths_that_a_writer_to_a_pipe_could_not_know_are_no_lengths(placeholder):
    content = bytearray(recording("wav"))
    data = content.index(b"data")
    content[data + 4 : data + 8] = struct.pack("<I", placeholder)
    for riff in (placeholder, min(placeholder + 36, 0xFFFF_FFFF)):
        content[4:8] = struct.pack("<I", riff)
        np.testing.assert_array_equal(decode(bytes(content), "clip"), SAMPLES / np.float32(32768))


def test_a_wav_over_4_gib_whose_length_began_again_is_named(tmp_path):
    # 2**32 bytes of sound more than the header can say, in a file with a hole.
    content = recording("wav")
    with (tmp_path / "long.wav").open("w+b") as file:
        file.write(content)
        file.truncate(len(content) + 2**32)
        with pytest.raises(InputError, match=r"long.wav: its header gives 64044 of 4295031340 bytes.*RF64"):
            open_recording(file, "long.wav")


@pytest.mark.parametrize("behind", [b"LIST" + bytes(1_000), b"ID3" + 100_000 * b"x", bytes(100_000)])
def test_tags_and_padding_behind_the_sound_are_no_fault(behind):
    assert len(decode(recording("wav") + behind, "clip")) == 16_000


def test_a_header_that_was_not_written_to_the_end_is_named():
    samples = np.tile(SAMPLES, (5, 1))
    content = bytearray(recording("wav", samples))
    content[4:8], data = struct.pack("<I", 32_036), content.index(b"data")
    content[data + 4 : data + 8] = struct.pack("<I", 32_000)
    with pytest.raises(InputError, match="clip: its header gives 32044 of 320044 bytes, as after a recorder was"):
        decode(bytes(content), "clip")
