"""A recording's file, of any format, rate and channel count, as samples at 16 kHz."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from branches.audio.containers import open_recording, opened
from branches.audio.sample_rate import at_16_khz
from branches.frames import MIN_SAMPLES, SAMPLE_RATE
from scoring.errors import InputError, naming


class Header(NamedTuple):
    """What a recording's file says of it; `subtype` is the sample format as libsndfile names it."""

    frames: int
    rate: int
    channels: int
    subtype: str


def read_header(path: Path) -> Header:
    """The header of a recording; errors as of `read_clip`, for what can be seen without decoding."""
    with opened(path) as content, open_recording(content, str(path)) as file:
        return Header(file.frames, file.samplerate, file.channels, file.subtype)


def read_clip(path: Path) -> NDArray[np.float32]:
    """The recording at 16 kHz: (samples, channels) float32, full scale = 1.

    Raises InputError naming a file that is unreadable, truncated, empty, shorter than one patch, or has a value that is
    not a finite number.
    """
    with opened(path) as file:
        content = file.read()
    return decode(content, str(path))


def write_wav(path: Path, samples: NDArray[np.float32], subtype: str) -> None:
    """Write samples (n,) or (n, channels) at 16 kHz; of what libsndfile writes itself, it cannot tell why it fails."""
    content = io.BytesIO()
    soundfile.write(content, samples, SAMPLE_RATE, format="WAV", subtype=subtype)
    with naming(path):
        path.write_bytes(content.getbuffer())


def decode(content: bytes, name: str) -> NDArray[np.float32]:
    """A recording's file, as bytes, at 16 kHz: (samples, channels) float32; errors as of `read_clip`."""
    with open_recording(io.BytesIO(content), name) as file:
        stated, rate = file.frames, file.samplerate
        try:
            samples = file.read(dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, ValueError, MemoryError) as error:  # NumPy's, of an absurd length
            raise InputError(f"{name}: truncated or damaged ({error}); copy it again") from None
    if len(samples) < stated:  # of FLAC and MP3, whose files do not state their size
        raise InputError(f"{name}: truncated: {len(samples)} of {stated} samples; copy it again")
    if not len(samples):
        raise InputError(f"{name}: the recording is empty; replace or remove it")
    if not np.isfinite(samples).all():
        raise InputError(f"{name}: a sample is not a finite number; replace or remove it")
    samples = at_16_khz(samples, rate, name)
    if len(samples) < MIN_SAMPLES:
        raise InputError(
            f"{name}: {len(samples) / SAMPLE_RATE:.3f} s is shorter than one patch "
            f"({MIN_SAMPLES / SAMPLE_RATE:.3f} s); remove it"
        )
    return samples
