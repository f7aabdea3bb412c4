"""What stands out in a recording against the normals of its machine, in words: when, at which frequencies, how much."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from branches.audio import read_clip
from branches.frames import N_MELS, SAMPLE_RATE
from branches.frontend import FBANK_STD, fbank
from scoring.errors import InputError

Levels = NDArray[np.float64]

MELS = 4  # in a band, which is 60 Hz wide at the bottom and 640 Hz at the top
WINDOW = 50  # frames: half a second
ENOUGH = 200  # normals tell what is usual
ALIKE = 5  # of them, of the same speed and load as far as one can tell, are compared with
SMALLEST = 0.5  # dB: deviation of bands that hardly vary
QUIET = 60.0  # dB below the loudest band, where changes are of the recorder's noise
_DB = 10 / np.log(10) * 2 * FBANK_STD  # of a normalised log-mel
_FILTERS = np.linspace(np.log1p(20 / 700), np.log1p(8000 / 700), N_MELS + 2)  # their edges and centres, in mel / 1127
_EDGES = 700 * np.expm1((_FILTERS[:-1] + _FILTERS[1:])[::MELS] / 2)  # Hz, of the bands


class Spectrum(NamedTuple):
    """Of normals: levels (n, bands) in dB; how far clips and their windows are at most from those alike (2, bands)."""

    levels: Levels
    farthest: Levels

    def change(self, samples: NDArray[np.float32]) -> str:
        """What stands out most in a recording (samples, channels) at 16 kHz; empty if normals are as far away."""
        more = _beyond(_levels(samples), self.levels)
        farthest = self.farthest[[0] + [1] * (len(more) - 1)]
        row, band = divmod(int((np.abs(more) / farthest).argmax()), more.shape[1])
        if abs(most := more[row, band]) <= farthest[row, band]:
            return ""
        more *= np.sign(most)
        others = np.flatnonzero(more[row] < abs(most) / 2)
        low, high = max(others[others < band], default=-1) + 1, min(others[others > band], default=more.shape[1])
        over_time = more[1:, low:high].mean(axis=1)
        when = np.flatnonzero(over_time >= over_time.max() / 2)
        first, last = np.linspace(0, len(samples) / SAMPLE_RATE, len(more))[[when[0], when[-1] + 1]]
        times = "throughout" if when[-1] - when[0] == len(over_time) - 1 else f"{first:.1f}–{last:.1f} s"
        amount = f"{over_time[when].mean():.0f} dB {'above' if most > 0 else 'below'} normal"
        return f"{times}, {_frequencies(low, high)}, {amount}"


def spectrum_of(paths: Sequence[Path | None]) -> Spectrum | None:
    """Of recordings of normals; None if there are fewer than three, or they are not there any more.

    A band's deviation counts as often as one normal in a hundred needs it at its farthest band, judged by the others.
    """
    if len(paths) < 3 or None in paths:
        return None
    try:
        clips = [_levels(read_clip(path)) for path in paths[:: max(1, len(paths) // ENOUGH)] if path]
    except InputError:
        return None
    levels = np.stack([clip[0] for clip in clips])
    more = [_beyond(clip, np.delete(levels, i, axis=0)) for i, clip in enumerate(clips)]
    squares = np.stack([[x[0] ** 2, np.square(x[1:]).mean(axis=0)] for x in more])
    times = []
    for i, x in enumerate(more):
        deviation = _root(np.delete(squares, i, axis=0))
        times.append([np.abs(part / d).max() for part, d in zip((x[:1], x[1:]), deviation, strict=True)])
    return Spectrum(levels, np.quantile(times, 0.99, axis=0, method="higher")[:, None] * _root(squares))


def _levels(samples: NDArray[np.float32]) -> Levels:
    """Levels in dB of the first channel, of the whole recording and of its windows: (1 + windows, bands)."""
    with torch.inference_mode():
        mels = fbank(torch.from_numpy(samples[None, :, 0]))[0].numpy().astype(float) * _DB
    bands = mels.reshape(len(mels), -1, MELS).mean(axis=2)
    parts = bands, *np.array_split(bands, max(1, round(len(bands) / WINDOW)))
    levels = np.stack([part.mean(axis=0) for part in parts])
    return np.maximum(levels, levels[0].max() - QUIET)


def _beyond(clip: Levels, normals: Levels) -> Levels:
    """Levels of a clip (1 + windows, bands) less those of the normals (n, bands) that are most alike."""
    return clip - normals[np.abs(normals - clip[0]).sum(axis=1).argsort()[:ALIKE]].mean(axis=0)


def _root(squares: Levels) -> Levels:
    return np.maximum(np.sqrt(squares.mean(axis=0)), SMALLEST)


def _frequencies(low: int, high: int) -> str:
    """Of bands from one on and up to another."""
    edges = _EDGES[[low, high]]
    if high - low == len(_EDGES) - 1:
        return "at all frequencies"
    *ends, middle = (f"{hz / 1000:.1f} kHz" if hz >= 950 else f"{hz:.0f} Hz" for hz in (*edges, edges.prod() ** 0.5))
    return f"around {middle}" if high - low <= 2 else "from {} to {}".format(*ends)
