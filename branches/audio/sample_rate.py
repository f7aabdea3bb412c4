"""Recordings of any sampling rate, at the rate that the networks are made for."""

from __future__ import annotations

from math import ceil, gcd

import numpy as np
import scipy
from numpy.typing import NDArray

from branches.frames import SAMPLE_RATE
from scoring.errors import InputError

LOWEST_RATE, HIGHEST_RATE = 4_000, 384_000
EDGE = 0.05  # seconds by which a recording is continued at either end, so that it does not begin with a step


def at_16_khz(samples: NDArray[np.float32], rate: int, name: str) -> NDArray[np.float32]:
    """Samples (n, channels) of a recording at `rate`, at 16 kHz: (`resampled_length`, channels).

    Everything below 8 kHz is kept as it is, and nothing above it: the spectrum is cut. A filter that falls off before
    8 kHz, as those of audio resamplers do, empties the uppermost mel bands, and in log-mels that is an anomaly. Any
    rate costs about the same. Raises InputError if the rate is outside of 4 to 384 kHz.
    """
    check_rate(rate, name)
    if rate == SAMPLE_RATE:
        return samples
    # So many samples last as long as a whole number of samples at 16 kHz.
    unit = rate // gcd(rate, SAMPLE_RATE)
    before = unit * ceil(EDGE * rate / unit)
    whole = unit * ceil((len(samples) + 2 * before) / unit)
    edge = min(round(EDGE * rate), len(samples) - 1)
    # Turned about its ends, it goes on in the direction in which it was going, and fades out.
    continued = np.pad(samples, ((edge, edge), (0, 0)), "reflect", reflect_type="odd")
    fade = scipy.signal.windows.hann(2 * edge, sym=False)[:edge, None].astype(np.float32)
    continued[:edge] *= fade
    continued[edge + len(samples) :] *= fade[::-1]
    padded = np.pad(continued, ((before - edge, whole - before - len(samples) - edge), (0, 0)))
    resampled: NDArray[np.float32] = scipy.signal.resample(padded, whole * SAMPLE_RATE // rate, axis=0)
    first = before * SAMPLE_RATE // rate
    return resampled[first : first + resampled_length(len(samples), rate)].astype(np.float32)


def check_rate(rate: int, name: str) -> None:
    """Raise `InputError` naming the recording if its sampling rate is outside of 4 to 384 kHz."""
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise InputError(
            f"{name}: a sampling rate of {rate} Hz; it must be between {LOWEST_RATE // 1000} and "
            f"{HIGHEST_RATE // 1000} kHz: correct the header, or resample the recording"
        )


def resampled_length(frames: int, rate: int) -> int:
    """Samples at 16 kHz of so many frames at `rate`."""
    return (2 * frames * SAMPLE_RATE + rate) // (2 * rate)
