"""What a branch is trained on: clips, their classes, generated clips beside them, and noise to mix in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from branches.audio.cache import AudioCache
from branches.data.dataset import class_labels, training_rows
from branches.spec import BranchSpec, Channel, ClassesSpec, PseudoLabelsSpec
from scoring.table import groups, rows_of

# A cluster of fewer clips is a few outliers rather than a condition.
MIN_CLUSTER = 5


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
        if machine not in self.rows:
            return None
        noise = self.audio.waveform(int(rng.choice(self.rows[machine])), self.channel)
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
    unattributed: (n_classes,) which classes are of machines without attributes
    generated: (g, frames, 128) normalised log-mels, or None
    noise: what the noise augmentation draws from
    """

    audio: AudioCache
    rows: NDArray[np.int64]
    machines: NDArray[np.object_]
    labels: NDArray[np.int64]
    unattributed: NDArray[np.bool_]
    generated: NDArray[np.floating] | None = None
    noise: NoisePool | None = None

    @property
    def n_classes(self) -> int:
        """How many classes there are."""
        return len(self.unattributed)

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
    more, features = generated if generated is not None else (train.slice(0, 0), None)
    labels, unattributed = classes_of(train, more, None if frozen is None else frozen[rows], spec.classes, spec.seed)
    usable = labels >= 0
    if features is not None:
        features = features[usable[len(rows) :]]
    (machines,) = rows_of(train, ["machine"])
    pool = _noise_pool(audio, rows, machines, spec, noise)
    return TrainingClips(audio, rows, machines, labels[usable], unattributed, features, pool)


def classes_of(
    train: pa.Table, more: pa.Table, embeddings: NDArray[np.floating] | None, classes: ClassesSpec, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Machine, section and attributes are a class; machines without attributes may be divided into clusters.

    Parameters
    ----------
    train, more: rows with machine, section, domain and attributes: n recorded and g generated clips
    embeddings: (n, …) of the recorded ones from a frozen backbone, if machines without attributes are to be
        divided; only their directions count, those of each band for itself
    classes: whether the domain is part of a class, and how many clusters there are
    seed: of k-means

    Returns
    -------
    labels: (n + g,) int64; −1 for a generated clip of a machine that is divided, which has no cluster
    unattributed: (n_classes,) which classes are of machines without attributes
    """
    columns = ["machine", "section", "attributes", "domain"]
    clips = pa.concat_tables([train.select(columns), more.select(columns)])
    labels, names = class_labels(clips)
    keys = np.array(names, object)[labels]
    n, bare = train.num_rows, _without_attributes(train)
    known = np.ones(len(keys), bool)
    if classes.pseudo_labels is not None:
        known[n:] = ~np.isin(keys[n:], keys[:n][bare])
    if classes.domain:
        keys = np.array([f"{k}/{d}" for k, d in zip(keys, clips["domain"].to_pylist(), strict=True)], object)
    if classes.pseudo_labels is not None:
        assert embeddings is not None, "made before, as `BranchSpec.frozen_inputs` asks for them"
        keys[:n][bare] = _clusters(train, bare, embeddings, classes.pseudo_labels, seed)[bare]
    numbers = np.full(len(keys), -1)
    found, numbers[known] = np.unique(keys[known], return_inverse=True)
    return numbers, np.isin(np.arange(len(found)), numbers[:n][bare])


def _without_attributes(train: pa.Table) -> NDArray[np.bool_]:
    """Rows (n,) of a machine and section none of whose clips has an attribute."""
    bare = np.array([not attributes for attributes in train["attributes"].to_pylist()], bool)
    for _, _, rows in groups(train):
        bare[rows] = bare[rows].all()
    return bare


def _clusters(
    train: pa.Table, bare: NDArray[np.bool_], embeddings: NDArray[np.floating], spec: PseudoLabelsSpec, seed: int
) -> NDArray[np.object_]:
    """Names (n,) of the clusters of the rows that are `bare`.

    Source and target are clustered by themselves, so that ten target clips form classes of their own.
    """
    norm = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    directions = (embeddings / np.maximum(norm, 1e-12)).reshape(len(embeddings), -1)
    (domains,) = rows_of(train, ["domain"])
    names = np.empty(len(bare), object)
    for machine, section, group in groups(train):
        for domain in sorted(set(domains[group & bare])):
            rows = np.flatnonzero(group & (domains == domain))
            # Copies of one clip cannot be divided.
            distinct = len(np.unique(directions[rows], axis=0))
            most = spec.target if domain == "target" else spec.source
            k = min(most, max(1, len(rows) // MIN_CLUSTER), distinct)
            found = KMeans(k, n_init=10, random_state=seed).fit_predict(directions[rows])
            names[rows] = [f"{machine}/section_{section:02d}/{domain}/cluster_{c:02d}" for c in found]
    return names


def _noise_pool(
    audio: AudioCache,
    rows: NDArray[np.int64],
    machines: NDArray[np.object_],
    spec: BranchSpec,
    noise: tuple[AudioCache, pa.Table] | None,
) -> NoisePool | None:
    """What the spec's noise is drawn from: supplemental recordings, or the far channel of the training clips."""
    channel: Channel = "far"
    if spec.augmentation.noise is None:
        return None
    if spec.augmentation.noise.source == "supplemental":
        assert noise is not None, "noise clips are checked before a run"
        audio, channel = noise[0], "near"
        (machines,) = rows_of(noise[1], ["machine"])
        rows = np.arange(len(machines))
    else:  # what a mono clip's only microphone hears is the machine, not noise
        stereo = audio.channels[rows] > 1
        rows, machines = rows[stereo], machines[stereo]
    return NoisePool(audio, {machine: rows[machines == machine] for machine in set(machines)}, channel)
