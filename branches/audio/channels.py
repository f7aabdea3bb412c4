"""Far-microphone cancellation: what the near microphone hears beyond what the far one explains.

For each frequency the near spectrum C is predicted from the far one F by the least-squares filter
H = Σ C F* / (Σ F F* + 1e-12) over the frames of the clip, and Y = C − H F is kept: ambient noise that reaches both
microphones goes, and with it the part of the machine that the far one hears alike. Only the clip itself is used.
The definition is that of kasahart/asd-experiments (W1), with which its figures were measured.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy.fft
from filelock import FileLock
from numpy.typing import NDArray

from branches.audio.cache import AudioCache
from branches.prefetch import prefetched
from scoring.atomic import atomic

log = logging.getLogger(__name__)

WINDOW, HOP = 1024, 512
_HANN = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)).astype(np.float32)
# Both channels are brought to this peak first, so that the floor, which keeps a silent far channel from dividing by 0,
# means the same at every level.
_PEAK, _FLOOR = np.float32(0.9), np.float32(1e-12)
# The last frame may end with the clip, where its window is almost 0: dividing by that makes a click of what the filter
# has moved there. Such a clip's last milliseconds fade out instead; clips of the challenge's lengths have none.
_ENVELOPE = np.float32(0.01)
# A clip that cancelling leaves less of, as a share of its energy, is one recording on both channels.
SILENCE = 1e-6


def cancel(near: NDArray[np.float32], far: NDArray[np.float32]) -> NDArray[np.float32]:
    """The near signal (samples,) without its linear prediction from the far one (samples,); more than half a window.

    Frames of 1 024 samples every 512 under a periodic Hann window, the clip reflected at its ends; the filtered frames
    are windowed again, added and divided by the sum of the squared windows.
    """
    clip = np.stack([near, far])
    peak = np.abs(clip).max()
    scale = peak / _PEAK if peak > _FLOOR else np.float32(1)
    padded = np.pad(clip / scale, ((0, 0), (WINDOW // 2, WINDOW // 2)), mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW, axis=1)[:, ::HOP]
    c, f = scipy.fft.rfft(frames * _HANN)
    h = (c * f.conj()).sum(axis=0) / (np.square(np.abs(f)).sum(axis=0) + _FLOOR)
    cleaned = scipy.fft.irfft(c - h * f, WINDOW) * _HANN
    envelope = _added(np.broadcast_to(np.square(_HANN), cleaned.shape))
    within = slice(WINDOW // 2, WINDOW // 2 + len(near))
    cancelled: NDArray[np.float32] = _added(cleaned)[within] / np.maximum(envelope[within], _ENVELOPE) * scale
    return cancelled


def _added(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """Frames (n, WINDOW), each HOP after the one before, added up: ((n + 1) · HOP,), as HOP is half of WINDOW."""
    halves = np.zeros((len(frames) + 1, HOP), np.float32)
    halves[:-1] += frames[:, :HOP]
    halves[1:] += frames[:, HOP:]
    return halves.reshape(-1)


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
    return replace(audio, cancelled=np.concatenate(clips))


def _write(audio: AudioCache, path: Path) -> None:
    out = np.lib.format.open_memmap(path, "w+", np.float32, (int(audio.lengths.sum()),))
    begin = identical = 0
    clips = prefetched(lambda clip: _cancelled_clip(audio, clip), range(len(audio)), os.cpu_count() or 1)
    for cancelled, nothing_left in clips:
        identical += nothing_left
        out[begin : begin + len(cancelled)] = cancelled
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
    return cancelled, False
