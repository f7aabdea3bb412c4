"""The training loop of every branch.

A step draws all its randomness (clips, crops, masks, dropout) from the seed and its own number, so a run that
resumes from a checkpoint at step k continues exactly as if it had not stopped.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from branches.audio import AudioCache
from branches.augment import spec_augment
from branches.dataset import class_labels
from branches.frontend import SAMPLE_RATE
from branches.model import BranchModel, features_of
from branches.objectives import build_objective
from branches.spec import BranchSpec, TrainingSpec
from scoring.errors import InputError

log = logging.getLogger(__name__)

# Called now and then with the number of steps done and the mean loss since the last call.
Report = Callable[[int, float], None]


@dataclass(frozen=True)
class TrainingClips:
    """What a branch is trained on.

    audio: decoded clips
    rows: (n,) the clips of `audio` to train on, and labels: (n,) the class of each
    n_classes: how many classes there are
    """

    audio: AudioCache
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    n_classes: int


def training_clips(audio: AudioCache, index: pa.Table) -> TrainingClips:
    """The training rows of a clip index, each with its class."""
    rows = np.flatnonzero(index["split"].to_numpy() == "train")
    labels, names = class_labels(index.take(rows))
    return TrainingClips(audio, rows, labels, len(names))


@dataclass
class _Progress:
    """Where a training stands; everything of it is in the checkpoint."""

    model: BranchModel
    objective: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    recent: list[float] = field(default_factory=list)

    def save(self, path: Path) -> None:
        state = {
            "step": self.step,
            "recent": self.recent,
            "model": self.model.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        torch.save(state, temporary)
        os.replace(temporary, path)

    def restore(self, path: Path) -> None:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.recent = state["step"], state["recent"]


def train(
    spec: BranchSpec,
    clips: TrainingClips,
    checkpoint: Path | None = None,
    report: Report = lambda step, loss: None,
    checkpoint_seconds: float = 60.0,
    device: str = "cpu",
) -> BranchModel:
    """Fine-tune a branch; the same spec and clips give the same weights on a CPU.

    Parameters
    ----------
    spec: the branch
    clips: normal training clips with their classes; with a single class nothing can be learnt, and the
        network is returned as initialised
    checkpoint: file to resume from, if it exists, and to save to every `checkpoint_seconds`
    report: see `Report`
    device: `cpu` or `cuda`

    Sets the seed of torch's global generators.

    Raises
    ------
    InputError
        If the loss is no longer a finite number. The checkpoint is removed then: going on from it would only
        end the same.
    """
    progress = _resume(spec, clips, checkpoint, device) or _start(spec, clips, device)
    steps = spec.training.steps
    if clips.n_classes < 2:
        log.warning("the training clips are all of one class: the embedding stays as initialised")
        steps = 0
    report_every = max(1, steps // 50)
    saved = time.monotonic()
    while progress.step < steps:
        try:
            progress.recent.append(_step(spec, clips, progress))
        except InputError:
            if checkpoint is not None:
                checkpoint.unlink(missing_ok=True)
            raise
        if progress.step % report_every == 0 or progress.step == steps:
            report(progress.step, float(np.mean(progress.recent)))
            progress.recent = []
        if checkpoint is not None and time.monotonic() - saved >= checkpoint_seconds:
            progress.save(checkpoint)
            saved = time.monotonic()
    return progress.model


def _resume(spec: BranchSpec, clips: TrainingClips, checkpoint: Path | None, device: str) -> _Progress | None:
    if checkpoint is None or not checkpoint.exists():
        return None
    progress = _start(spec, clips, device)
    try:
        progress.restore(checkpoint)
    except Exception as error:  # a damaged file can fail in any way, and starting anew is always right
        log.warning("checkpoint %s cannot be used (%s); training starts anew", checkpoint, str(error).split("\n")[0])
        return None
    return progress


def _start(spec: BranchSpec, clips: TrainingClips, device: str) -> _Progress:
    torch.manual_seed(spec.seed)
    model = BranchModel(spec, encode_in_bfloat16=device == "cuda").to(device)
    objective = build_objective(spec.objective, spec.embedding_dim, clips.n_classes).to(device)
    parameters = [p for p in (*model.parameters(), *objective.parameters()) if p.requires_grad]
    training = spec.training
    optimizer = torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)
    return _Progress(model, objective, optimizer)


def _step(spec: BranchSpec, clips: TrainingClips, progress: _Progress) -> float:
    """One optimiser step; returns the loss."""
    model, optimizer, training = progress.model, progress.optimizer, spec.training
    rng = np.random.default_rng([spec.seed, progress.step])
    torch.manual_seed(int(rng.integers(2**63)))
    chosen = batch_rows(len(clips.rows), training.batch_size, progress.step, spec.seed)
    device = next(model.parameters()).device
    waveforms = [_crop(clips.audio, int(clips.rows[i]), spec, rng) for i in chosen]
    features, padding = features_of(waveforms, device)
    labels = torch.from_numpy(clips.labels[chosen]).to(device)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(training, progress.step)
    model.train()
    loss = progress.objective(model(spec_augment(features, spec.augmentation), padding), labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(trained, training.gradient_clip)
    optimizer.step()
    if not math.isfinite(loss.item()):
        raise InputError(
            f"the loss is {loss.item()} at step {progress.step}: training diverged; lower the learning rate"
        )
    progress.step += 1
    return loss.item()


def batch_rows(n_clips: int, batch_size: int, step: int, seed: int) -> NDArray[np.int64]:
    """Positions (batch_size,) of the clips of a step: the endless row of shuffled passes, cut into batches."""
    first = step * batch_size
    passes = range(first // n_clips, (first + batch_size - 1) // n_clips + 1)
    order = np.concatenate([np.random.default_rng([seed, 1, p]).permutation(n_clips) for p in passes])
    offset = first - passes[0] * n_clips
    return order[offset : offset + batch_size]


def _crop(audio: AudioCache, clip: int, spec: BranchSpec, rng: np.random.Generator) -> NDArray[np.float32]:
    length = int(audio.lengths[clip])
    wanted = round(spec.training.crop_seconds * SAMPLE_RATE)
    if length <= wanted:
        return audio.waveform(clip, spec.channel)
    return audio.waveform(clip, spec.channel, int(rng.integers(length - wanted + 1)), wanted)


def learning_rate(training: TrainingSpec, step: int) -> float:
    """Linear warm-up to `learning_rate`, then half a cosine to zero at the last step."""
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    done = (step - training.warmup_steps) / max(1, training.steps - training.warmup_steps)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
