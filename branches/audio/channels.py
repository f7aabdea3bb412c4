"""Far-microphone cancellation: what the near microphone hears beyond what the far one explains.

For each frequency the near spectrum C is predicted from the far one F by the least-squares filter
H = Σ C F* / Σ F F* over the frames of the clip, and Y = C − H F is kept: ambient noise that reaches both
microphones goes, and with it the part of the machine that the far one hears alike. Only the clip itself is used.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import scipy
from filelock import FileLock
from numpy.typing import NDArray

from branches.audio.cache import AudioCache
from branches.frames import SAMPLE_RATE
from branches.prefetch import prefetched
from scoring.atomic import atomic

log = logging.getLogger(__name__)

WINDOW, HOP = 1024, 512
# Keeps a silent far channel from dividing by 0.
_FLOOR = 1e-12
# A clip that cancelling leaves less of, as a share of its energy, is one recording on both channels.
SILENCE = 1e-6


@cache
def _stft() -> scipy.signal.ShortTimeFFT:
    return scipy.signal.ShortTimeFFT(scipy.signal.windows.hann(WINDOW, sym=False), HOP, SAMPLE_RATE)


def cancel(near: NDArray[np.float32], far: NDArray[np.float32]) -> NDArray[np.float32]:
    """The near signal (samples,) without its linear prediction from the far one (samples,).

    A clip shorter than a window has one frame, from which anything can be predicted: it is returned as it is.
    """
    if len(near) < WINDOW:
        return near
    stft = _stft()
    c, f = stft.stft(near), stft.stft(far)
    h = (c * f.conj()).sum(axis=1) / ((np.abs(f) ** 2).sum(axis=1) + _FLOOR)
    cancelled: NDArray[np.float64] = stft.istft(c - h[:, None] * f, k1=len(near))
    return cancelled.astype(np.float32)


def with_cancellation(audio: AudioCache, folder: Path) -> AudioCache:
    """The cache with the channel `cancel`, computed once into `folder`; other processes wait for the one that does.

    `folder` is for what this version of the code computes. Mono clips have nothing to cancel with and stay as they are.
    """
    path = folder / "cancelled.npy"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            with atomic(path) as temporary:
                _write(audio, temporary)
    return replace(audio, cancelled=np.load(path, mmap_mode="r"))


def cancelled_in_memory(audio: AudioCache) -> AudioCache:
    """The cache with the channel `cancel`, for a few clips."""
    clips = [_cancelled_clip(audio, clip)[0] for clip in range(len(audio))]
    return replace(audio, cancelled=_stored(np.concatenate(clips), audio.samples.dtype))


def _write(audio: AudioCache, path: Path) -> None:
    dtype = audio.samples.dtype
    out = np.lib.format.open_memmap(path, "w+", dtype, (int(audio.lengths.sum()),))
    begin = identical = 0
    clips = prefetched(lambda clip: _cancelled_clip(audio, clip), range(len(audio)), os.cpu_count() or 1)
    for cancelled, nothing_left in clips:
        identical += nothing_left
        out[begin : begin + len(cancelled)] = _stored(cancelled, dtype)
        begin += len(cancelled)
    out.flush()
    if identical:
        log.warning("%d clips have the same sound on both channels: nothing is cancelled there", identical)


def _cancelled_clip(audio: AudioCache, clip: int) -> tuple[NDArray[np.float32], bool]:
    """A clip (samples,) after cancellation, and whether it was left as it is since nothing else would remain."""
    near = audio.waveform(clip, "near")
    if audio.channels[clip] == 1:
        return near, False
    cancelled = cancel(near, audio.waveform(clip, "far"))
    if np.square(cancelled).sum() <= SILENCE * np.square(near).sum():
        return near, True
    # Rounded as the recording itself is, whatever the other clips of the cache are.
    return (_rounded(cancelled) if np.array_equal(near, _rounded(near)) else cancelled), False


def _rounded(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nearest 16-bit samples; what is louder than full scale, by cancelling a loud clip, is cut."""
    return (np.clip(np.rint(samples * 32768), -32768, 32767) / 32768).astype(np.float32)


def _stored(samples: NDArray[np.float32], dtype: np.dtype) -> NDArray[np.int16] | NDArray[np.float32]:
    return (samples * 32768).astype(np.int16) if dtype == np.int16 else samples
