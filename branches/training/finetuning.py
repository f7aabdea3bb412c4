"""Fine-tuning of a branch: what is trained, and the loss of a batch."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from branches.beats.encoder import apply_layer, recomputed
from branches.frames import PATCH_SIZE, n_frames
from branches.model import BranchModel, features_of
from branches.spec import BranchSpec
from branches.training.augment import mix, mixing, spec_augment
from branches.training.batches import Batch, batches
from branches.training.loop import Progress, Report, resume, run
from branches.training.masked_prediction import MaskedPrediction
from branches.training.objectives import Objective, build_objective
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

    Sets the seed of torch's global generators.

    Raises
    ------
    InputError
        If the training diverges, see `branches.training.loop.run`; if a batch does not fit into the GPU's memory; if
        `compiled` and there is no compiler.
    """
    if compiled:
        _require_compiler()
    parts: list[_Parts] = []

    def start() -> Progress:
        parts[:] = [_Parts(spec, clips, device)]
        return parts[0].progress(spec, clips.signature)

    if clips.n_classes < 2:
        log.warning("the training clips are all of one class: the embedding stays as initialised")
        start()
        return parts[0].model

    def attempt(recompute: bool) -> bool:
        """Train; False if the GPU's memory was too little, all of which is free once this has returned."""
        progress = resume(start, checkpoint)
        _prepare_layers(parts[0], compiled, recompute)
        loss_of = _loss_of(spec, parts[0], batches(spec, clips, progress.step, workers))
        try:
            run(progress, spec.training, loss_of, checkpoint, report, checkpoint_seconds)
        except torch.OutOfMemoryError:
            return False
        return True

    if attempt(recompute=False):
        return parts[0].model
    log.warning("a batch does not fit into the GPU's memory: layers are computed twice, a third more work")
    parts.clear()
    torch.cuda.empty_cache()
    if attempt(recompute=True):
        return parts[0].model
    raise InputError(
        f"a batch of {spec.training.batch_size} clips of {spec.training.crop_seconds:g} s does not fit into the GPU's "
        "memory; halve training.batch_size and double training.accumulation, or run fewer branches on a GPU"
    )


def _require_compiler() -> None:
    """What `torch.compile` makes is C for the host, on a GPU too."""
    if not any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))):
        raise InputError("--compile needs a C compiler: install gcc where branches train, or leave the option out")


def _prepare_layers(parts: _Parts, compiled: bool, recompute: bool) -> None:
    """Choose how the encoder calls its layers while it trains."""
    encoder = parts.model.beats.encoder
    if compiled:
        encoder.apply_layer = torch.compile(apply_layer)
    if recompute:
        encoder.apply_layer = recomputed(encoder.apply_layer)


class _Parts:
    """All that is trained together."""

    def __init__(self, spec: BranchSpec, clips: TrainingClips, device: str) -> None:
        torch.manual_seed(spec.seed)
        self.device = torch.device(device)
        self.model = BranchModel(spec, train_in_bfloat16=device == "cuda").to(device)
        dim = spec.embedding_dim * self.model.pooling.bands
        bare = None if clips.unattributed is None else torch.from_numpy(clips.unattributed)
        self.objective = build_objective(spec.objective, dim, clips.n_classes, bare).to(device)
        self.masked: MaskedPrediction | None = None
        if spec.masked_prediction is not None:
            self.masked = MaskedPrediction(spec.masked_prediction, self.model.width).to(device)

    def progress(self, spec: BranchSpec, signature: str) -> Progress:
        modules: dict[str, nn.Module] = {"model": self.model, "objective": self.objective}
        if self.masked is not None:
            modules["masked"] = self.masked
        in_backbone = {id(p) for p in self.model.backbone.parameters()}
        heads = [p for module in modules.values() for p in module.parameters() if id(p) not in in_backbone]
        groups = [{"params": group.parameters, "factor": group.factor} for group in self.model.groups]
        training = spec.training
        optimizer = torch.optim.AdamW(
            [*groups, {"params": heads, "factor": 1.0}],
            lr=training.learning_rate,
            weight_decay=training.weight_decay,
            fused=self.device.type == "cuda",  # one kernel in place of a dozen for each step
        )
        return Progress(modules, optimizer, signature)


def _loss_of(spec: BranchSpec, parts: _Parts, prepared: Iterator[Batch]) -> Callable[[int], Tensor]:
    """The loss of each batch, to be asked for in turn."""

    def loss(number: int) -> Tensor:
        torch.manual_seed(int(np.random.default_rng([spec.seed, number]).integers(2**63)))
        parts.model.train()
        return _loss(spec, parts, next(prepared))

    return loss


def _loss(spec: BranchSpec, parts: _Parts, batch: Batch) -> Tensor:
    """Mean loss of a batch: mixed, masked, encoded, classified."""
    model, masked, augmentation = parts.model, parts.masked, spec.augmentation
    features, padding = _features(batch, parts.device)
    labels = to_device(torch.from_numpy(batch.labels), parts.device)
    partner, share = (to_device(t, parts.device) for t in mixing(len(labels), augmentation.mixup))
    if augmentation.mixup is not None:
        features = mix(features, partner, share)
        if padding is not None:
            padding = padding | (padding[partner] & (share < 1)[:, None])
    if masked:
        with torch.autocast(parts.device.type, torch.bfloat16, enabled=model.train_in_bfloat16):
            hidden = masked.labels(features)
        features, where = masked.mask(features)
    patches, patch_padding = model.encode(spec_augment(features, augmentation), padding)
    embeddings = model.pool(patches, patch_padding).flatten(1)
    if augmentation.mixup is None:
        parts.objective.adapt(embeddings.detach(), labels, labels)
        loss = parts.objective(embeddings, labels).mean()
    else:
        loss = _mixed_loss(parts.objective, embeddings, labels, labels[partner], share)
    if masked:
        loss = loss + masked(patches, hidden, where if patch_padding is None else where & ~patch_padding)
    return loss


def _mixed_loss(objective: Objective, embeddings: Tensor, labels: Tensor, partners: Tensor, share: Tensor) -> Tensor:
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
