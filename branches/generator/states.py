"""Operating states: what a clip is a recording of, how rare that is, and what its training clips sound like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.preprocessing import MultiLabelBinarizer
from torch import Tensor

from branches.audio.cache import AudioCache
from branches.frames import FRAME_LENGTH, FRAME_SHIFT, SAMPLE_RATE, n_frames
from branches.frontend import fbank
from branches.generator.flow import TOKEN_FRAMES
from branches.spec import Channel
from branches.transfer import to_device


@dataclass(frozen=True)
class OperatingState:
    """What is recorded; two clips of one state differ by chance alone."""

    machine: str
    section: int
    domain: str
    attributes: tuple[tuple[str, str], ...]

    @property
    def group(self) -> str:
        """Machine and section: what clips must share to be references of each other."""
        return f"{self.machine}/section_{self.section:02d}"

    def __str__(self) -> str:
        """E.g. `fan/section_00/target/spd=3`."""
        return "/".join([self.group, self.domain, *(f"{k}={v}" for k, v in self.attributes)])

    def words(self) -> list[str]:
        """The parts that have an effect of their own; what they mean is the machine's own matter.

        An attribute is told by its place too, since a key may come twice.
        """
        attributes = (f"{self.group}/{position}:{k}={v}" for position, (k, v) in enumerate(self.attributes))
        return [self.group, f"{self.group}/{self.domain}", *attributes]


def states_of(index: pa.Table) -> list[OperatingState]:
    """The operating state of each row of a clip index."""
    columns = (index[c].to_pylist() for c in ("machine", "section", "domain", "attributes"))
    return [OperatingState(m, s, d, tuple(a)) for m, s, d, a in zip(*columns, strict=True)]


def rare_states(states: Sequence[OperatingState], fill: float) -> dict[OperatingState, int]:
    """How many clips each state lacks to `fill` times the commonest one of its machine and section."""
    counts, commonest = _counts(states)
    lacking = {s: round(fill * commonest[s.group]) - counts[s] for s in sorted(counts, key=str)}
    return {s: n for s, n in lacking.items() if n > 0}


def balanced(states: Sequence[OperatingState]) -> NDArray[np.int64]:
    """The clips of a pass, rare ones several times: the root of how much rarer their state is, rounded.

    Equal shares would show each of ten clips a hundred times as often as one of a thousand, and be learnt by heart.
    """
    counts, commonest = _counts(states)
    times = [round((commonest[s.group] / counts[s]) ** 0.5) for s in states]
    return np.repeat(np.arange(len(states)), times)


def _counts(states: Sequence[OperatingState]) -> tuple[Counter[OperatingState], dict[str, int]]:
    """Clips of each state, and of the commonest one of each machine and section."""
    counts, commonest = Counter(states), dict[str, int]()
    for state, n in counts.items():
        commonest[state.group] = max(commonest.get(state.group, 0), n)
    return counts, commonest


@dataclass(frozen=True)
class RealClips:
    """The training clips of a data set.

    audio, channel: where they are heard, and rows: (n,) their places there
    index: their n rows of the clip index, and states: (n,) what each is a recording of
    frames: length of every crop; device: which computes
    levels: of each clip, the band levels (w, 256) of its windows
    words, mean, std: (n, words) and (n, 1, 128) of the state of each
    """

    audio: AudioCache
    channel: Channel
    rows: NDArray[np.int64]
    index: pa.Table
    states: list[OperatingState]
    frames: int
    device: torch.device
    levels: list[NDArray[np.float32]]
    words: Tensor
    mean: Tensor
    std: Tensor

    def conditioning(self, chosen: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """Words (B, words), mean and std (B, 1, 128) of the states of clips (B,), on the device."""
        words, mean, std = (to_device(table[chosen], self.device) for table in (self.words, self.mean, self.std))
        return words, mean, std

    def crops(self, chosen: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        """Log-mels (B, frames, 128) of clips (B,) from a random sample on, standardised by their states."""
        rows, count = self.rows[chosen], FRAME_LENGTH + (self.frames - 1) * FRAME_SHIFT
        starts = zip(rows, rng.integers(self.audio.lengths[rows] - count + 1), strict=True)
        waveforms = np.stack([self.audio.waveform(int(row), self.channel, int(first), count) for row, first in starts])
        _, mean, std = self.conditioning(chosen)
        return (fbank(to_device(torch.from_numpy(waveforms), self.device)) - mean) / std


def real_clips(audio: AudioCache, index: pa.Table, channel: Channel, crop_seconds: float, device: str) -> RealClips:
    """The training rows of a clip index; crops are of `crop_seconds`, or as long as the shortest clip.

    Windows overlap by seven eighths, so that any crop is near one.
    """
    rows = np.flatnonzero(index["split"].to_numpy() == "train")
    training = index.take(rows)
    states = states_of(training)
    longest = min(round(crop_seconds * SAMPLE_RATE), int(audio.lengths[rows].min()))
    frames = n_frames(longest) // TOKEN_FRAMES * TOKEN_FRAMES
    levels = []
    for row in rows:
        features = fbank(torch.from_numpy(audio.waveform(int(row), channel)).to(device)[None])[0]
        levels.append(band_levels(features.unfold(0, frames, frames // 8).transpose(1, 2)))
    # The words of each state as a matrix of 0 and 1.
    words = MultiLabelBinarizer().fit_transform([state.words() for state in states]).astype(np.float32)
    tables = map(torch.from_numpy, (words, *band_scale(states, words, levels)))
    return RealClips(audio, channel, rows, training, states, frames, torch.device(device), levels, *tables)


def band_levels(features: Tensor) -> NDArray[np.float32]:
    """What a log-mel sounds like at large: (B, F, 128) → (B, 256), mean and standard deviation of each band."""
    return torch.cat([features.mean(dim=1), features.std(dim=1)], dim=1).float().cpu().numpy()


def band_scale(
    states: Sequence[OperatingState], words: NDArray[np.float32], levels: Sequence[NDArray[np.float32]]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation (n, 1, 128) of every band over time and clips, in the state of each clip.

    For each machine and section a ridge regression of the clips' band means and log standard deviations on the words
    of their states (n, words): the effect of a word that few clips have is shrunk.
    """
    groups = np.array([state.group for state in states])
    mean, std = np.split(np.stack([windows.mean(axis=0) for windows in levels]), 2, axis=1)
    log_std = np.log(np.maximum(std, 1e-3))  # a band without any change, as of digital silence, has no unit of its own
    for group in np.unique(groups):
        rows = groups == group
        target = np.hstack([mean[rows], log_std[rows]])
        predicted, log_predicted = np.hsplit(Ridge().fit(words[rows], target).predict(words[rows]), 2)
        std[rows] = np.sqrt(np.exp(2 * log_predicted) + (mean[rows] - predicted).var(axis=0))
        mean[rows] = predicted
    return mean[:, None], std[:, None]
