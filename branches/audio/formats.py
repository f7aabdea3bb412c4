"""What a machine's clips are like as recordings, and in what another one differs from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, TypeAdapter

from branches.audio.cache import AudioCache
from branches.frames import SAMPLE_RATE
from scoring.atomic import atomic

_WINDOW = 1024
_FRAMES = 64  # spread over a clip
_CLIPS = 50  # of a machine; they are recorded alike
# Ten times the variance of rounding to 16 bits: what lies below is empty.
_FLOOR = 10 * 2.0**-30 / 12


class Format(BaseModel):
    """The training clips of a machine.

    seconds: shortest and longest
    channels: numbers of channels that occur
    bandwidth: Hz up to which there is sound, of the clip with the least
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: tuple[float, float]
    channels: tuple[int, ...]
    bandwidth: float

    def differences(self, samples: NDArray[np.float32]) -> str:
        """In what a recording (samples, channels) at 16 kHz differs so much that its score means something else."""
        shortest, longest = self.seconds
        seconds, top = len(samples) / SAMPLE_RATE, bandwidth(samples)
        lines = []
        if not shortest / 1.5 <= seconds <= longest * 1.5:
            lines.append(f"{seconds:.3g} s long, those {_range(shortest, longest)} s")
        if samples.shape[1] not in self.channels:
            lines.append(f"of {samples.shape[1]} channels, those of {_range(min(self.channels), max(self.channels))}")
        if top < 0.75 * self.bandwidth:
            lines.append(f"empty above {top:.0f} Hz, those above {self.bandwidth:.0f} Hz")
        return "; ".join(lines)

    def joined(self, other: Format) -> Format:
        """The format of these clips and of others together."""
        return Format(
            seconds=(min(self.seconds[0], other.seconds[0]), max(self.seconds[1], other.seconds[1])),
            channels=tuple(sorted({*self.channels, *other.channels})),
            bandwidth=min(self.bandwidth, other.bandwidth),
        )


FORMATS = "formats.json"
_FORMATS = TypeAdapter(dict[str, Format])


def _range(low: float, high: float) -> str:
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def bandwidth(samples: NDArray[np.float32]) -> float:
    """Hz up to which a recording (samples, channels) at 16 kHz is louder than the rounding of 16-bit files."""
    padded = np.pad(samples, ((0, max(0, _WINDOW - len(samples))), (0, 0)))
    starts = np.unique(np.linspace(0, len(padded) - _WINDOW, _FRAMES).astype(int))
    window = np.hanning(_WINDOW + 1)[:-1]
    frames = padded[starts[:, None] + np.arange(_WINDOW)] * window[:, None]
    power = (np.abs(np.fft.rfft(frames, axis=1)) ** 2).mean(axis=0).max(axis=-1) / (window**2).sum()
    loud = np.flatnonzero(power > _FLOOR)
    return float(loud[-1] * SAMPLE_RATE / _WINDOW) if len(loud) else 0.0


def formats_of(audio: AudioCache, index: pa.Table) -> dict[str, Format]:
    """The format of every machine's training clips."""
    machine, train = index["machine"].to_numpy(), index["split"].to_numpy() == "train"
    seconds = audio.lengths / SAMPLE_RATE
    formats = {}
    for name in np.unique(machine[train].astype(str)).tolist():
        rows = np.flatnonzero(train & (machine == name))
        some = rows[np.unique(np.linspace(0, len(rows) - 1, _CLIPS).astype(int))]
        formats[name] = Format(
            seconds=(float(seconds[rows].min()), float(seconds[rows].max())),
            channels=tuple(np.unique(audio.channels[rows]).tolist()),
            bandwidth=min(bandwidth(_samples(audio, clip)) for clip in some),
        )
    return formats


def write_formats(folder: Path, audio: AudioCache, index: pa.Table) -> None:
    """Keep the formats of a run's clips in its folder, for the models that are made of it."""
    with atomic(folder / FORMATS) as temporary:
        temporary.write_bytes(_FORMATS.dump_json(formats_of(audio, index), indent=1))


def read_formats(folder: Path) -> dict[str, Format]:
    """The formats of a run's clips; nothing if it has none or they are damaged."""
    try:
        return _FORMATS.validate_json((folder / FORMATS).read_bytes())
    except (OSError, ValueError):
        return {}


def _samples(audio: AudioCache, clip: int) -> NDArray[np.float32]:
    return np.stack([audio.waveform(clip, "near"), audio.waveform(clip, "far")], axis=1)
