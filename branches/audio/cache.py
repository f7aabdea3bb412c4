"""Decoded clips in a memory-mapped cache.

Every branch of a machine reads the same cache, so a clip is decoded once and the kernel shares its pages.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from branches.audio.decoding import read_clip, read_header
from branches.frames import SAMPLE_RATE
from branches.prefetch import prefetched
from branches.spec import Channel
from scoring.atomic import atomic_folder
from scoring.errors import InputError
from scoring.locks import locked

log = logging.getLogger(__name__)

Samples = NDArray[np.int16] | NDArray[np.float32]


@dataclass(frozen=True)
class AudioCache:
    """Decoded clips, in the order of the clip index.

    samples: (total,) int16 or float32, memory-mapped; a clip's samples and channels are interleaved
    start, channels: (clips,) where a clip begins in `samples` and its number of channels; `start` has one more
    cancelled: the clips after far-microphone cancellation (`branches.audio.channels`), of one channel, or None
    """

    samples: Samples
    start: NDArray[np.int64]
    channels: NDArray[np.int64]
    cancelled: AudioCache | None = None

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
            assert self.cancelled is not None, "call with_cancellation first"
            return self.cancelled.waveform(clip, "near", first, count)
        n = int(self.channels[clip])
        begin = int(self.start[clip]) + first * n
        end = int(self.start[clip + 1]) if count is None else begin + count * n
        block = self.samples[begin:end].reshape(-1, n)
        chosen = block.mean(axis=1, dtype=np.float32) if channel == "mean" else block[:, 0 if channel == "near" else -1]
        return chosen.astype(np.float32) / np.float32(32768 if self.samples.dtype == np.int16 else 1)


def in_memory(clips: Sequence[NDArray[np.float32]]) -> AudioCache:
    """A cache of a few recordings (samples, channels) at 16 kHz."""
    start = np.cumsum([0, *(clip.size for clip in clips)])
    return AudioCache(
        np.concatenate([clip.reshape(-1) for clip in clips]), start, np.array([c.shape[1] for c in clips])
    )


def open_cache(root: Path, index: pa.Table, folder: Path) -> AudioCache:
    """The cache in `folder`, decoded now if it is not there.

    Raises InputError naming the first recording that cannot be used; nothing is left behind then.
    """
    cache = cached(folder, lambda: _decoded(root, index["path"].to_pylist()))
    if len(cache) != index.num_rows:
        raise InputError(f"{folder}: the audio cache is of another data set; delete the folder and run again")
    return cache


def cached(folder: Path, clips: Callable[[], Iterable[Samples]]) -> AudioCache:
    """The cache in `folder`, made now of clips (samples, channels) of one type if it is not there.

    Other processes wait for the one that makes it. Nodes whose locks do not hold for each other make one each, and the
    first stays, as it may be mapped already.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f"{folder.name}.lock")):
        if not folder.exists():
            own = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
            with atomic_folder(own) as unfinished:
                _write(clips(), unfinished)
            try:
                os.rename(own, folder)
            except OSError:
                shutil.rmtree(own, ignore_errors=True)
                if not folder.exists():
                    raise
    layout = np.load(folder / "layout.npz")
    return AudioCache(np.memmap(folder / "samples", str(layout["dtype"]), "r"), layout["start"], layout["channels"])


def _write(clips: Iterable[Samples], folder: Path) -> None:
    sizes, channels = [0], []
    with open(folder / "samples", "wb") as file:
        for clip in clips:
            file.write(np.ascontiguousarray(clip).data)
            sizes.append(clip.size)
            channels.append(clip.shape[1])
    np.savez(folder / "layout.npz", start=np.cumsum(sizes), channels=channels, dtype=clip.dtype.str)


def _decoded(root: Path, paths: Sequence[str]) -> Iterator[Samples]:
    """Recordings at 16 kHz, (samples, channels) each: int16 if all of them are, and float32 otherwise."""
    headers = [read_header(root / path) for path in paths]
    resampled = [path for path, header in zip(paths, headers, strict=True) if header.rate != SAMPLE_RATE]
    if resampled:
        log.warning(
            "%d of %d clips are not at %d Hz and are resampled, e.g. %s",
            len(resampled), len(paths), SAMPLE_RATE, resampled[0],
        )  # fmt: skip
    exact = not resampled and all(header.subtype == "PCM_16" for header in headers)
    for clip in prefetched(lambda path: read_clip(root / path), paths, os.cpu_count() or 1):
        yield np.rint(clip * 32768).astype(np.int16) if exact else clip
