"""What a branch is trained on: clips, their classes, generated clips beside them, and noise to mix in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from branches.audio.cache import AudioCache
from branches.data.dataset import training_rows
from branches.spec import BranchSpec, Channel
from branches.training.classes import classes_of, unattributed


@dataclass(frozen=True)
class NoisePool:
    """Recordings to mix into clips.

    rows: by machine, the clips of `audio` to draw from
    channel: which of their channels
    """

    audio: AudioCache
    rows: dict[str, NDArray[np.int64]]
    channel: Channel

    def draw(self, machine: str, samples: int, rng: np.random.Generator) -> NDArray[np.float32] | None:
        """A stretch (samples,) of a recording for this machine, repeated if it is shorter; None if there is none."""
        rows = self.rows.get(machine)
        if rows is None or not len(rows):
            return None
        noise = self.audio.waveform(int(rng.choice(rows)), self.channel)
        if len(noise) < samples:
            noise = np.tile(noise, -(-samples // len(noise)))
        first = int(rng.integers(len(noise) - samples + 1))
        return noise[first : first + samples]


@dataclass(frozen=True)
class TrainingClips:
    """What a branch is trained on: n recorded clips, and g generated ones after them.

    audio: decoded clips
    rows: (n,) the clips of `audio` to train on
    machines: (n,) the machine of each
    labels: (n + g,) the class of each
    n_classes: how many classes there are
    generated: (g, frames, 128) normalised log-mels, or None
    noise: what the noise augmentation draws from
    unattributed: (n_classes,) those of machines without attributes
    """

    audio: AudioCache
    rows: NDArray[np.int64]
    machines: NDArray[np.object_]
    labels: NDArray[np.int64]
    n_classes: int
    generated: NDArray[np.floating] | None = None
    noise: NoisePool | None = None
    unattributed: NDArray[np.bool_] | None = None

    @property
    def signature(self) -> str:
        """Digest of clips and classes: a training that began with others cannot go on with these."""
        # Not of the rows' places among all clips: test clips that are added change those, and nothing that is learnt.
        parts = (self.audio.lengths[self.rows], self.labels, np.array([self.n_classes]))
        return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


def training_clips(
    audio: AudioCache,
    index: pa.Table,
    spec: BranchSpec,
    frozen: NDArray[np.floating] | None = None,
    generated: tuple[pa.Table, NDArray[np.floating]] | None = None,
    noise: tuple[AudioCache, pa.Table] | None = None,
) -> TrainingClips:
    """The training rows of a clip index with their classes, and what the spec's augmentation needs.

    Parameters
    ----------
    audio: decoded clips, in the order of `index`
    index: the clip index; test rows are left out
    spec: the branch
    frozen: (clips, …) embeddings of the clips by a frozen backbone, for pseudo-labels
    generated: rows (machine, section, domain, attributes) and features (g, frames, 128) of generated clips
    noise: decoded clips of `supplemental` folders and the machine of each
    """
    rows = np.flatnonzero(training_rows(index))
    train = index.take(rows)
    machines = np.array(train["machine"].to_pylist(), object)
    more, features = generated if generated is not None else (train.slice(0, 0), None)
    clustered = None if frozen is None else frozen[rows]
    labels, n_classes = classes_of(train, more, clustered, spec.classes, spec.seed)
    usable = labels >= 0
    bare = np.zeros(n_classes, bool)
    bare[labels[: len(rows)][unattributed(train)]] = True
    if features is not None:
        features = features[usable[len(rows) :]]
    pool = _noise_pool(audio, rows, machines, spec, noise)
    return TrainingClips(audio, rows, machines, labels[usable], n_classes, features, pool, bare)


def _noise_pool(
    audio: AudioCache,
    rows: NDArray[np.int64],
    machines: NDArray[np.object_],
    spec: BranchSpec,
    noise: tuple[AudioCache, pa.Table] | None,
) -> NoisePool | None:
    if spec.augmentation.noise is None:
        return None
    if spec.augmentation.noise.source == "supplemental":
        assert noise is not None, "noise clips are checked before a run"
        return NoisePool(noise[0], _by_machine(np.array(noise[1]["machine"].to_pylist(), object)), "near")
    stereo = audio.channels[rows] > 1  # what a mono clip's only microphone hears is the machine, not noise
    far_rows = {machine: rows[stereo & (machines == machine)] for machine in dict.fromkeys(machines)}
    return NoisePool(audio, far_rows, "far")


def _by_machine(machines: NDArray[np.object_]) -> dict[str, NDArray[np.int64]]:
    return {machine: np.flatnonzero(machines == machine) for machine in dict.fromkeys(machines)}
