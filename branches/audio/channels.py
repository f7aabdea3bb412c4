"""Far-microphone cancellation: what the near microphone hears beyond what the far one explains.

For each frequency the near spectrum C is predicted from the far one F by the least-squares filter
H = Σ C F* / (Σ F F* + 1e-12) over the frames of the clip, and Y = C − H F is kept: ambient noise that reaches both
microphones goes, and with it the part of the machine that the far one hears alike. Only the clip itself is used.
The definition is that of kasahart/asd-experiments (W1), with which its figures were measured.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from branches.audio.cache import AudioCache, cached, in_memory
from branches.prefetch import prefetched
from scoring.errors import counted

log = logging.getLogger(__name__)

WINDOW, HOP = 1024, 512
_HANN = torch.hann_window(WINDOW)
# Both channels are brought to this peak first, so that the floor, which keeps a silent far channel from dividing by 0,
# means the same at every level.
_PEAK, _FLOOR = 0.9, 1e-12
_ENVELOPE = 0.01  # of squared windows; where there is less, a clip fades out
# A clip that cancelling leaves less of, as a share of its energy, is one recording on both channels.
SILENCE = 1e-6


def cancel(near: NDArray[np.float32], far: NDArray[np.float32]) -> NDArray[np.float32]:
    """The near signal (samples,) without its linear prediction from the far one (samples,); more than half a window.

    Frames of 1 024 samples every 512 under a periodic Hann window, the clip reflected at its ends; the filtered frames
    are windowed again, added and divided by the sum of the squared windows.
    """
    clip = torch.from_numpy(np.stack([near, far]))
    peak = clip.abs().max()
    scale = peak / _PEAK if peak > _FLOOR else 1.0
    c, f = torch.stft(clip / scale, WINDOW, HOP, window=_HANN, return_complex=True)
    h = torch.linalg.vecdot(f, c) / (torch.linalg.vecdot(f, f).real + _FLOOR)
    cancelled = torch.istft(c - h[:, None] * f, WINDOW, HOP, window=_HANN, length=len(near)) * scale
    # The last frame may end with the clip, where its window is almost 0: dividing by that makes a click of what the
    # filter has moved there. What it alone covers fades out instead; clips of the challenge's lengths have no such end.
    alone = len(near) % HOP
    cancelled[len(near) - alone :] *= (_HANN[HOP : HOP + alone].square() / _ENVELOPE).clamp(max=1)
    return np.asarray(cancelled)


def with_cancellation(audio: AudioCache, folder: Path) -> AudioCache:
    """The cache with the channel `cancel`, computed once into `folder`; other processes wait for the one that does.

    `folder` is for what this version of the code computes. Mono clips have nothing to cancel with and stay as they are.
    """
    return replace(audio, cancelled=cached(folder / "cancelled", lambda: _cancelled(audio)))


def cancelled_in_memory(audio: AudioCache) -> AudioCache:
    """The cache with the channel `cancel`, for a few clips."""
    return replace(audio, cancelled=in_memory([_cancelled_clip(audio, clip)[0] for clip in range(len(audio))]))


def _cancelled(audio: AudioCache) -> Iterator[NDArray[np.float32]]:
    identical = 0
    clips = prefetched(lambda clip: _cancelled_clip(audio, clip), range(len(audio)), os.cpu_count() or 1)
    for cancelled, nothing_left in clips:
        identical += nothing_left
        yield cancelled
    if identical:
        log.warning("the same sound on both channels: %s, where nothing is cancelled", counted(identical, "clip"))


def _cancelled_clip(audio: AudioCache, clip: int) -> tuple[NDArray[np.float32], bool]:
    """A clip (samples, 1) after cancellation, and whether it was left as it is since nothing else would remain."""
    near = audio.waveform(clip, "near")
    if audio.channels[clip] == 1:
        return near[:, None], False
    cancelled = cancel(near, audio.waveform(clip, "far"))
    nothing_left = bool(np.square(cancelled).sum() <= SILENCE * np.square(near).sum())
    return (near if nothing_left else cancelled)[:, None], nothing_left
