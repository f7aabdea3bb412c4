"""Fine-tuning of a branch: what is trained, and the loss of a batch."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from branches.beats.encoder import Encoder, apply_layer, recomputed
from branches.frames import PATCH_SIZE, n_frames
from branches.model import BranchModel, features_of
from branches.spec import BranchSpec
from branches.training.augment import mix, mixing, spec_augment
from branches.training.batches import Batch, batches
from branches.training.loop import Progress, Report, resume, run
from branches.training.masked_prediction import MaskedPrediction
from branches.training.objectives import Objective, build_objective
from branches.training.strategies import ParameterGroup
from branches.training.training_set import TrainingClips
from branches.transfer import to_device
from scoring.errors import InputError

log = logging.getLogger(__name__)


def train(
    spec: BranchSpec,
    clips: TrainingClips,
    checkpoint: Path | None = None,
    report: Report = lambda step, loss: None,
    checkpoint_seconds: float = 600.0,
    device: str = "cpu",
    workers: int = 1,
    compiled: bool = False,
) -> BranchModel:
    """Fine-tune a branch; the same spec and clips give the same weights on a CPU.

    Parameters
    ----------
    spec: the branch, of any strategy but `frozen`
    clips: normal training clips with their classes; with a single class nothing can be learnt, and the
        network is returned as initialised
    checkpoint: file to resume from, if it exists, and to save to every `checkpoint_seconds`
    report: see `branches.training.loop.Report`
    device: `cpu` or `cuda`
    workers: threads that put batches together; the batches are the same for any number
    compiled: compile the encoder's layers: the first step takes longer, all others are faster

    Where a batch does not fit into the GPU's memory, layers are computed again for their gradients.

    Sets the seed of torch's global generators. Raises InputError if the training diverges, if a batch does not fit into
    the GPU's memory even so, or if `compiled` and there is no compiler.
    """
    if compiled:
        _require_compiler()
    if clips.n_classes < 2:
        log.warning("the training clips are all of one class: the embedding stays as initialised")
        return FineTuning(spec, clips, device).model

    def start() -> Progress:
        return FineTuning(spec, clips, device).progress(clips.signature)

    def attempt(recompute: bool) -> BranchModel | None:
        """The branch; None if the GPU's memory was too little, all of which is free once this has returned."""
        try:
            progress = resume(start, checkpoint)
            parts = progress.module
            assert isinstance(parts, FineTuning)
            _prepare_layers(parts.model.beats.encoder, compiled, recompute)
            prepared = batches(spec, clips, progress.step, workers)
            run(progress, spec.training, partial(_loss, parts, prepared), checkpoint, report, checkpoint_seconds)
        except torch.OutOfMemoryError:
            return None
        return parts.model

    if model := attempt(recompute=False):
        return model
    log.warning("a batch does not fit into the GPU's memory: layers are computed twice, a third more work")
    torch.cuda.empty_cache()
    if model := attempt(recompute=True):
        return model
    raise InputError(
        f"a batch of {spec.training.batch_size} clips of {spec.training.crop_seconds:g} s does not fit into the GPU's "
        "memory; halve training.batch_size and double training.accumulation, or run fewer branches on a GPU"
    )


def _require_compiler() -> None:
    """What `torch.compile` makes is C for the host, on a GPU too."""
    if not any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))):
        raise InputError("--compile needs a C compiler: install gcc where branches train, or leave the option out")


def _prepare_layers(encoder: Encoder, compiled: bool, recompute: bool) -> None:
    """Choose how the encoder calls its layers while it trains."""
    if compiled:
        encoder.apply_layer = torch.compile(apply_layer)
    if recompute:
        encoder.apply_layer = recomputed(encoder.apply_layer)


def _loss(parts: FineTuning, prepared: Iterator[Batch], number: int) -> Tensor:
    """The loss of the next batch; what it draws depends on the seed and its number alone."""
    torch.manual_seed(int(np.random.default_rng([parts.spec.seed, number]).integers(2**63)))
    loss: Tensor = parts.train()(next(prepared))
    return loss


class FineTuning(nn.Module):
    """All that is trained together: a branch, its objective and, if the spec has one, its masked prediction."""

    def __init__(self, spec: BranchSpec, clips: TrainingClips, device: str = "cpu") -> None:
        super().__init__()
        torch.manual_seed(spec.seed)
        self.spec = spec
        self.model = BranchModel(spec, train_in_bfloat16=device == "cuda")
        dim = spec.embedding_dim * self.model.pooling.bands
        self.objective = build_objective(spec.objective, dim, clips.n_classes, torch.from_numpy(clips.unattributed))
        masked = spec.masked_prediction
        self.masked = None if masked is None else MaskedPrediction(masked, self.model.width)
        self.to(device)

    @property
    def device(self) -> torch.device:
        """Where it is trained."""
        return next(self.parameters()).device

    def progress(self, signature: str = "") -> Progress:
        """The training before its first step: AdamW of the backbone's groups and of all that is not the backbone."""
        in_backbone = {id(p) for p in self.model.backbone.parameters()}
        heads = ParameterGroup([p for p in self.parameters() if id(p) not in in_backbone])
        optimizer = torch.optim.AdamW(
            [group._asdict() for group in (*self.model.groups, heads)],
            lr=self.spec.training.learning_rate,
            weight_decay=self.spec.training.weight_decay,
            fused=self.device.type == "cuda",  # one kernel in place of a dozen for each step
        )
        return Progress(self, optimizer, signature)

    def forward(self, batch: Batch) -> Tensor:
        """Mean loss of a batch: mixed, masked, encoded, classified."""
        augmentation, device = self.spec.augmentation, self.device
        features, padding = _features(batch, device)
        mean_level = self.model.beats.config.mean_level
        labels = to_device(torch.from_numpy(batch.labels), device)
        partner, share = (to_device(t, device) for t in mixing(len(labels), augmentation.mixup))
        if augmentation.mixup is not None:
            features = mix(features, partner, share)
            if padding is not None:
                padding = padding | (padding[partner] & (share < 1)[:, None])
        if self.masked is not None:
            with torch.autocast(device.type, torch.bfloat16, enabled=self.model.train_in_bfloat16):
                hidden = self.masked.labels(features)
            features, where = self.masked.mask(features, mean_level)
        patches, patch_padding = self.model.encode(spec_augment(features, augmentation, mean_level), padding)
        embeddings = self.model.pool(patches, patch_padding).flatten(1)
        loss = mixed_loss(self.objective, embeddings, labels, labels[partner], share)
        if self.masked is not None:
            loss = loss + self.masked(patches, hidden, where if patch_padding is None else where & ~patch_padding)
        return loss


def mixed_loss(objective: Objective, embeddings: Tensor, labels: Tensor, partners: Tensor, share: Tensor) -> Tensor:
    """Mean loss of clips (B,) with two labels, by their shares; a share of 1 is a clip by itself."""
    partners = torch.where(share < 1, partners, labels)
    larger = share >= 0.5
    objective.adapt(embeddings.detach(), torch.where(larger, labels, partners), torch.where(larger, partners, labels))
    return (share * objective(embeddings, labels) + (1 - share) * objective(embeddings, partners)).mean()


def _features(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Log-mels (B, F, 128) of recorded and generated clips, and padded frames (B, F) or None.

    Beside generated clips, recorded ones lose the frames that fill no patch, so that crops are of one length.
    """
    if not batch.features:
        return features_of(batch.waveforms, device)
    clips: list[Tensor] = [to_device(torch.from_numpy(features), device) for features in batch.features]
    if batch.waveforms:
        recorded, _ = features_of(batch.waveforms, device)
        kept = [n_frames(len(waveform)) // PATCH_SIZE * PATCH_SIZE for waveform in batch.waveforms]
        clips = [*(clip[:n] for clip, n in zip(recorded, kept, strict=True)), *clips]
    features = nn.utils.rnn.pad_sequence(clips, batch_first=True)
    lengths = [len(clip) for clip in clips]
    if len(set(lengths)) == 1:
        return features, None
    last = to_device(torch.tensor(lengths), device)[:, None]
    return features, torch.arange(features.shape[1], device=device) >= last
