"""How long a machine's clips are and of how many channels, and in what another recording differs from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, TypeAdapter

from branches.audio.cache import AudioCache
from branches.frames import SAMPLE_RATE
from scoring.atomic import atomic


class Format(BaseModel):
    """The training clips of a machine.

    seconds: shortest and longest
    channels: numbers of channels that occur
    """

    model_config = ConfigDict(frozen=True)

    seconds: tuple[float, float]
    channels: tuple[int, ...]

    def differences(self, samples: NDArray[np.float32]) -> str:
        """In what a recording (samples, channels) at 16 kHz differs so much that its score means something else."""
        shortest, longest = self.seconds
        seconds = len(samples) / SAMPLE_RATE
        lines = []
        if not shortest / 1.5 <= seconds <= longest * 1.5:
            lines.append(f"{seconds:.3g} s long, those {_range(shortest, longest)} s")
        if samples.shape[1] not in self.channels:
            lines.append(f"of {samples.shape[1]} channels, those of {_range(min(self.channels), max(self.channels))}")
        return "; ".join(lines)

    def joined(self, other: Format) -> Format:
        """The format of these clips and of others together."""
        return Format(
            seconds=(min(self.seconds[0], other.seconds[0]), max(self.seconds[1], other.seconds[1])),
            channels=tuple(sorted({*self.channels, *other.channels})),
        )


FORMATS = "formats.json"
_FORMATS = TypeAdapter(dict[str, Format])


def _range(low: float, high: float) -> str:
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def formats_of(audio: AudioCache, index: pa.Table) -> dict[str, Format]:
    """The format of every machine's training clips."""
    columns = {"machine": index["machine"], "seconds": audio.lengths / SAMPLE_RATE, "channels": audio.channels}
    train = pa.table(columns).filter(pc.equal(index["split"], "train"))
    machines = train.group_by("machine").aggregate([("seconds", "min"), ("seconds", "max"), ("channels", "distinct")])
    return {
        name: Format(seconds=(shortest, longest), channels=tuple(sorted(channels)))
        for name, shortest, longest, channels in zip(*machines.to_pydict().values(), strict=True)
    }


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
