"""Decoded clips in a memory-mapped cache.

Every branch of a machine reads the same cache, so a clip is decoded once and the kernel shares its pages.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from filelock import FileLock
from numpy.typing import NDArray

from branches.audio.decoding import read_clip, read_header
from branches.audio.sample_rate import resampled_length
from branches.frames import SAMPLE_RATE
from branches.prefetch import prefetched
from branches.spec import Channel
from scoring.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AudioCache:
    """Decoded clips, in the order of the clip index.

    samples: (total,) int16 or float32, memory-mapped; a clip's samples and channels are interleaved
    start, channels: (clips,) where a clip begins in `samples` and its number of channels; `start` has one more
    cancelled: (total per channel,) the clips after far-microphone cancellation (`branches.audio.channels`), or None;
        full scale = 1, as what is left of 16-bit samples is between them
    """

    samples: NDArray[np.int16] | NDArray[np.float32]
    start: NDArray[np.int64]
    channels: NDArray[np.int64]
    cancelled: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.channels)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Samples of each clip per channel: (clips,)."""
        return np.diff(self.start) // self.channels

    def waveform(self, clip: int, channel: Channel, first: int = 0, count: int | None = None) -> NDArray[np.float32]:
        """`count` samples of a clip from sample `first`: (count,) float32, full scale = 1.

        `near` is the first channel and `far` the last; a mono clip has one channel for all. For `cancel` the
        cache must have been through `branches.audio.channels.with_cancellation`.
        """
        if channel == "cancel":
            return self._cancelled(clip, first, count)
        n = int(self.channels[clip])
        begin = int(self.start[clip]) + first * n
        end = int(self.start[clip + 1]) if count is None else begin + count * n
        block = self.samples[begin:end].reshape(-1, n)
        chosen = block.mean(axis=1) if channel == "mean" else block[:, 0 if channel == "near" else -1]
        return self._scaled(chosen)

    def _cancelled(self, clip: int, first: int, count: int | None) -> NDArray[np.float32]:
        assert self.cancelled is not None, "call with_cancellation first"
        begin = int(self._cancelled_start[clip]) + first
        end = int(self._cancelled_start[clip + 1]) if count is None else begin + count
        return np.array(self.cancelled[begin:end])

    @cached_property
    def _cancelled_start(self) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(self.lengths)])

    def _scaled(self, samples: NDArray[np.floating] | NDArray[np.int16]) -> NDArray[np.float32]:
        full_scale = 32768 if self.samples.dtype == np.int16 else 1
        return (samples / np.float32(full_scale)).astype(np.float32)


def in_memory(clips: Sequence[NDArray[np.float32]]) -> AudioCache:
    """A cache of a few recordings (samples, channels) at 16 kHz, as `open_cache` would decode them."""
    samples = np.concatenate([clip.reshape(-1) for clip in clips])
    scaled = samples * np.float32(32768)
    exact = np.array_equal(scaled, np.rint(scaled).clip(-32768, 32767))
    start = np.concatenate([[0], np.cumsum([clip.size for clip in clips])])
    channels = np.array([clip.shape[1] for clip in clips])
    return AudioCache(scaled.astype(np.int16) if exact else samples, start, channels)


def open_cache(root: Path, index: pa.Table, folder: Path) -> AudioCache:
    """The cache in `folder`, decoded now if it is not there; other processes wait for the one that decodes.

    Raises
    ------
    InputError
        Naming the first recording that cannot be used; nothing is left behind then.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            unfinished = folder.with_name(f"{folder.name}.tmp")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            try:
                _decode(root, index["path"].to_pylist(), unfinished)
                _move(unfinished, folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    layout = np.load(folder / "layout.npz")
    cache = AudioCache(np.load(folder / "samples.npy", mmap_mode="r"), layout["start"], layout["channels"])
    if len(cache) != index.num_rows:
        raise InputError(f"{folder}: the audio cache is of another data set; delete the folder and run again")
    return cache


def _move(unfinished: Path, folder: Path) -> None:
    try:
        os.replace(unfinished, folder)
    except OSError:
        if not folder.exists():  # else another node, whose lock does not hold here, was first
            raise


def _decode(root: Path, paths: list[str], folder: Path) -> None:
    headers = [read_header(root / path) for path in paths]
    resampled = [path for path, header in zip(paths, headers, strict=True) if header.rate != SAMPLE_RATE]
    if resampled:
        log.warning(
            "%d of %d clips are not at %d Hz and are resampled, e.g. %s",
            len(resampled), len(paths), SAMPLE_RATE, resampled[0],
        )  # fmt: skip
    exact = not resampled and all(header.subtype == "PCM_16" for header in headers)
    frames = np.array([resampled_length(header.frames, header.rate) for header in headers])
    channels = np.array([header.channels for header in headers])
    start = np.concatenate([[0], np.cumsum(frames * channels)])
    samples = np.lib.format.open_memmap(
        folder / "samples.npy", "w+", np.int16 if exact else np.float32, (int(start[-1]),)
    )
    clips = prefetched(lambda path: read_clip(root / path).reshape(-1), paths, os.cpu_count() or 1)
    for i, (path, clip) in enumerate(zip(paths, clips, strict=True)):
        if len(clip) != start[i + 1] - start[i]:
            raise InputError(f"{root / path}: the header gives another length than the file has; copy it again")
        samples[start[i] : start[i + 1]] = np.rint(clip * 32768) if exact else clip
    samples.flush()
    np.savez(folder / "layout.npz", start=start, channels=channels)
