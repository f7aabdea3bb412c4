"""Batches of training clips: which clips a step takes, cut and augmented as waveforms.

Everything a batch draws comes from the seed and the number of its step, so batches may be made ahead, on as many
threads as there are CPUs, and after a restart they are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from branches.frames import PATCH_SIZE, SAMPLE_RATE, n_frames
from branches.prefetch import prefetched
from branches.spec import BranchSpec
from branches.training.augment import add_noise
from branches.training.training_set import TrainingClips


@dataclass(frozen=True)
class Batch:
    """Waveforms of recorded clips, features (frames, 128) of generated ones, and the labels (B,) of both in turn."""

    waveforms: list[NDArray[np.float32]]
    labels: NDArray[np.int64]
    features: list[NDArray[np.float32]] = field(default_factory=list)


def batches(spec: BranchSpec, clips: TrainingClips, first_step: int, workers: int = 1) -> Iterator[Batch]:
    """The batch of each micro-step (`accumulation` to a step) from `first_step` on, the next `workers` made ahead."""
    training = spec.training
    numbers = range(first_step * training.accumulation, training.steps * training.accumulation)
    return prefetched(lambda number: make_batch(spec, clips, number), numbers, workers)


def make_batch(spec: BranchSpec, clips: TrainingClips, number: int) -> Batch:
    """The batch of one micro-step; what a clip draws does not depend on the clips beside it."""
    rng = np.random.default_rng([spec.seed, 2, number])
    chosen = batch_rows(len(clips.labels), spec.training.batch_size, number, spec.seed)
    recorded = chosen[chosen < len(clips.rows)]
    generated = chosen[chosen >= len(clips.rows)]
    rngs = iter(rng.spawn(len(chosen)))
    return Batch(
        [_waveform(spec, clips, int(i), next(rngs)) for i in recorded],
        clips.labels[np.concatenate([recorded, generated])],
        [_generated(spec, clips, int(i), next(rngs)) for i in generated],
    )


def batch_rows(n_clips: int, batch_size: int, step: int, seed: int) -> NDArray[np.int64]:
    """Positions (batch_size,) of the clips of a step: the endless row of shuffled passes, cut into batches."""
    first = step * batch_size
    passes = range(first // n_clips, (first + batch_size - 1) // n_clips + 1)
    order = np.concatenate([np.random.default_rng([seed, 1, p]).permutation(n_clips) for p in passes])
    offset = first - passes[0] * n_clips
    return order[offset : offset + batch_size]


def _waveform(spec: BranchSpec, clips: TrainingClips, position: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A crop of a recorded clip, or all of a shorter one, with noise mixed in."""
    audio, clip = clips.audio, int(clips.rows[position])
    wanted = round(spec.training.crop_seconds * SAMPLE_RATE)
    length = int(audio.lengths[clip])
    first = int(rng.integers(length - wanted + 1)) if length > wanted else 0
    waveform = audio.waveform(clip, spec.channel, first, min(wanted, length))
    mixed = spec.augmentation.noise
    if mixed is None or clips.noise is None or rng.random() >= mixed.probability:
        return waveform
    noise = clips.noise.draw(clips.machines[position], len(waveform), rng)
    return waveform if noise is None else add_noise(waveform, noise, float(rng.choice(mixed.snr_db)))


def _generated(spec: BranchSpec, clips: TrainingClips, position: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A crop (frames, 128) of a generated clip, of as many whole patches as a recorded one has."""
    assert clips.generated is not None
    features = clips.generated[position - len(clips.rows)]
    wanted = n_frames(round(spec.training.crop_seconds * SAMPLE_RATE)) // PATCH_SIZE * PATCH_SIZE
    first = int(rng.integers(max(0, len(features) - wanted) + 1))
    return features[first : first + wanted].astype(np.float32)
