"""The real training clips as generator and check see them: windows of one length and their band statistics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from branches.audio.cache import AudioCache
from branches.frames import FRAME_LENGTH, FRAME_SHIFT, SAMPLE_RATE, n_frames
from branches.frontend import fbank
from branches.generator.conditions import Condition, conditions_of
from branches.generator.network import TOKEN_FRAMES
from branches.spec import Channel
from branches.transfer import to_device
from scoring.errors import InputError


@dataclass(frozen=True)
class RealClips:
    """The training clips of a data set.

    audio, channel: where they are heard
    index: (n,) clip index of the training rows, and rows: (n,) their places in `audio`
    conditions: (n,) what each is a recording of
    frames: length of every crop
    """

    audio: AudioCache
    channel: Channel
    index: pa.Table
    rows: NDArray[np.int64]
    conditions: list[Condition]
    frames: int

    def crops(self, clips: NDArray[np.int64], first: NDArray[np.int64], device: torch.device) -> Tensor:
        """Log-mels (B, frames, 128) of training clips (B,), each from its sample `first` (B,)."""
        count = _samples(self.frames)
        starts = zip(self.rows[clips], first, strict=True)
        waveforms = np.stack([self.audio.waveform(int(row), self.channel, int(at), count) for row, at in starts])
        return fbank(to_device(torch.from_numpy(waveforms), device))

    def last_start(self, clips: NDArray[np.int64]) -> NDArray[np.int64]:
        """The last sample (B,) at which a crop of each clip can begin."""
        return self.audio.lengths[self.rows[clips]] - _samples(self.frames)


def real_clips(audio: AudioCache, index: pa.Table, channel: Channel, crop_seconds: float) -> RealClips:
    """The training rows of a clip index, cut to `crop_seconds` or to the shortest clip.

    Raises
    ------
    InputError
        If there are none.
    """
    rows = np.flatnonzero(index["split"].to_numpy() == "train")
    if not len(rows):
        raise InputError("the data set has no training clips; there is nothing to learn from")
    longest = min(round(crop_seconds * SAMPLE_RATE), int(audio.lengths[rows].min()))
    training = index.take(rows)
    frames = n_frames(longest) // TOKEN_FRAMES * TOKEN_FRAMES
    return RealClips(audio, channel, training, rows, conditions_of(training), frames)


def _samples(frames: int) -> int:
    return FRAME_LENGTH + (frames - 1) * FRAME_SHIFT


@dataclass(frozen=True)
class WindowStatistics:
    """Band statistics of windows of the training clips, each window as long as a crop.

    clip: (W,) the training clip of each window
    values: (W, 3, 128) see `band_statistics`
    """

    clip: NDArray[np.int64]
    values: NDArray[np.float32]


def window_statistics(clips: RealClips, device: str) -> WindowStatistics:
    """Statistics of windows that follow each other by an eighth of their length, so that any crop is near one."""
    hop = max(1, clips.frames // 8)
    clip, values = [], []
    for number, row in enumerate(clips.rows):
        waveform = torch.from_numpy(clips.audio.waveform(int(row), clips.channel)).to(device)
        windows = fbank(waveform[None])[0].unfold(0, clips.frames, hop).transpose(1, 2).contiguous()
        clip.append(np.full(len(windows), number))
        values.append(band_statistics(windows))
    return WindowStatistics(np.concatenate(clip), np.concatenate(values))


def band_statistics(features: Tensor) -> NDArray[np.float32]:
    """What a log-mel sounds like at large: (B, F, 128) → (B, 3, 128).

    For each band its mean and standard deviation over time, and the standard deviation of its change from frame
    to frame, which tells flicker from swell.
    """
    parts = [features.mean(dim=1), features.std(dim=1), features.diff(dim=1).std(dim=1)]
    return torch.stack(parts, dim=1).float().cpu().numpy()
