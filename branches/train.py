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
import torch
from torch import Tensor, nn

from branches.augment import mix, mixing, spec_augment
from branches.batches import Batch, batches
from branches.masked_prediction import MaskedPrediction
from branches.model import BranchModel, features_of
from branches.objectives import build_objective
from branches.spec import BranchSpec, FrozenSpec, TrainingSpec
from branches.training_set import TrainingClips
from scoring.errors import InputError

log = logging.getLogger(__name__)

# Called now and then with the number of steps done and the mean loss since the last call.
Report = Callable[[int, float], None]


@dataclass
class _Progress:
    """Where a training stands; everything of it that changes is in the checkpoint.

    averaged: moving averages of the trained weights of the model, in the order of its parameters
    """

    model: BranchModel
    objective: nn.Module
    masked: MaskedPrediction | None
    optimizer: torch.optim.Optimizer
    averaged: list[Tensor]
    step: int = 0
    recent: list[float] = field(default_factory=list)

    def trained(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def _modules(self) -> dict[str, nn.Module]:
        masked = {} if self.masked is None else {"masked": self.masked}
        return {"model": self.model, "objective": self.objective, **masked}

    def save(self, path: Path) -> None:
        frozen = {name for name, p in self.model.named_parameters() if not p.requires_grad}
        states = {name: module.state_dict() for name, module in self._modules().items()}
        # What stays as the backbone's checkpoint has it need not be written again and again.
        states["model"] = {key: value for key, value in states["model"].items() if key not in frozen}
        state = {
            "step": self.step,
            "recent": self.recent,
            "states": states,
            "optimizer": self.optimizer.state_dict(),
            "averaged": self.averaged,
        }
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        torch.save(state, temporary)
        os.replace(temporary, path)

    def restore(self, path: Path) -> None:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        for name, module in self._modules().items():
            known = module.state_dict() if name == "model" else {}
            module.load_state_dict({**known, **state["states"][name]})
        self.optimizer.load_state_dict(state["optimizer"])
        for kept, saved in zip(self.averaged, state["averaged"], strict=True):
            kept.copy_(saved)
        self.step, self.recent = state["step"], state["recent"]

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """The first steps count little in the end, so that the average does not remember the start."""
        decay = min(decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.averaged, [p.detach() for p in self.trained()], 1 - decay)

    @torch.no_grad()
    def take_average(self) -> None:
        for parameter, averaged in zip(self.trained(), self.averaged, strict=True):
            parameter.copy_(averaged)


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
        network is returned as initialised, as it is with the strategy `frozen`
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
    if isinstance(spec.strategy, FrozenSpec):
        return progress.model
    if clips.n_classes < 2:
        log.warning("the training clips are all of one class: the embedding stays as initialised")
        return progress.model
    try:
        _run(spec, clips, progress, checkpoint, report, checkpoint_seconds)
    except InputError:
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)
        raise
    if progress.averaged:
        progress.take_average()
    return progress.model


def _run(
    spec: BranchSpec,
    clips: TrainingClips,
    progress: _Progress,
    checkpoint: Path | None,
    report: Report,
    checkpoint_seconds: float,
) -> None:
    steps = spec.training.steps
    report_every = max(1, steps // 50)
    saved = time.monotonic()
    ahead = batches(spec, clips, progress.step)
    while progress.step < steps:
        loss = _step(spec, progress, [next(ahead) for _ in range(spec.training.accumulation)])
        progress.recent.append(loss)
        if progress.step % report_every == 0 or progress.step == steps:
            report(progress.step, float(np.mean(progress.recent)))
            progress.recent = []
        if checkpoint is not None and time.monotonic() - saved >= checkpoint_seconds:
            progress.save(checkpoint)
            saved = time.monotonic()


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
    objective = build_objective(spec.objective, spec.embedding_dim * model.pooling.bands, clips.n_classes).to(device)
    masked = None if spec.masked_prediction is None else MaskedPrediction(spec.masked_prediction, model.width)
    masked = masked.to(device) if masked else None
    in_backbone = {id(p) for p in model.backbone.parameters()}
    heads = [p for module in (model, objective, masked) if module for p in module.parameters()]
    groups = [
        *({"params": group.parameters, "factor": group.factor} for group in model.groups),
        {"params": [p for p in heads if id(p) not in in_backbone], "factor": 1.0},
    ]
    training = spec.training
    optimizer = torch.optim.AdamW(groups, lr=training.learning_rate, weight_decay=training.weight_decay)
    trained = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    return _Progress(model, objective, masked, optimizer, trained if training.average else [])


def _step(spec: BranchSpec, progress: _Progress, parts: list[Batch]) -> float:
    """One optimiser step over the batches of its accumulation; returns the mean loss."""
    training, optimizer = spec.training, progress.optimizer
    torch.manual_seed(int(np.random.default_rng([spec.seed, progress.step]).integers(2**63)))
    for group in optimizer.param_groups:
        group["lr"] = group["factor"] * learning_rate(training, progress.step)
    progress.model.train()
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for batch in parts:
        loss = _loss(spec, progress, batch) / len(parts)
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(trained, training.gradient_clip)
    optimizer.step()
    if not math.isfinite(total):
        raise InputError(f"the loss is {total} at step {progress.step}: training diverged; lower the learning rate")
    if progress.averaged:
        progress.update_average(training.average)
    progress.step += 1
    return total


def _loss(spec: BranchSpec, progress: _Progress, batch: Batch) -> Tensor:
    """Mean loss of a batch: mixed, masked, encoded, classified."""
    model = progress.model
    device = next(model.parameters()).device
    features, padding = _features(batch, device)
    labels = torch.from_numpy(batch.labels).to(device)
    partner, share = (t.to(device) for t in mixing(len(labels), spec.augmentation.mixup))
    if spec.augmentation.mixup is not None:
        features = mix(features, partner, share)
        if padding is not None:
            padding = padding | (padding[partner] & (share < 1)[:, None])
    masked = progress.masked
    hidden = masked.labels(features) if masked else []
    if masked:
        features, where = masked.mask(features)
    patches, patch_padding = model.encode(spec_augment(features, spec.augmentation), padding)
    embeddings = model.pool(patches, patch_padding).flatten(1)
    loss = (share * progress.objective(embeddings, labels)).mean()
    if spec.augmentation.mixup is not None:
        loss = loss + ((1 - share) * progress.objective(embeddings, labels[partner])).mean()
    if masked:
        loss = loss + masked(patches, hidden, where if patch_padding is None else where & ~patch_padding)
    return loss


def _features(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Log-mels (B, F, 128) of recorded and generated clips, and padded frames (B, F) or None."""
    if not batch.features:
        return features_of(batch.waveforms, device)
    parts: list[Tensor] = [torch.from_numpy(features).to(device) for features in batch.features]
    if batch.waveforms:
        recorded, padding = features_of(batch.waveforms, device)
        kept = [len(clip) for clip in recorded] if padding is None else (~padding).sum(dim=1).tolist()
        parts = [*(clip[:n] for clip, n in zip(recorded, kept, strict=True)), *parts]
    features = nn.utils.rnn.pad_sequence(parts, batch_first=True)
    lengths = torch.tensor([len(part) for part in parts], device=device)
    padding = torch.arange(features.shape[1], device=device) >= lengths[:, None]
    return features, padding if bool(padding.any()) else None


def learning_rate(training: TrainingSpec, step: int) -> float:
    """Linear warm-up to `learning_rate`, then half a cosine to zero at the last step."""
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    done = (step - training.warmup_steps) / max(1, training.steps - training.warmup_steps)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
