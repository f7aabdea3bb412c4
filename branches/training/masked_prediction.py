"""Masked prediction: while it learns its classes, a branch also tells what was under masked patches.

The report's dual-tokenizer variants, as we read them: each patch has a label from each of two acoustic tokenizers,
and those of the masked patches are predicted from the encoder's output, as in the pre-training of BEATs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from branches.beats import load_tokenizer
from branches.frames import N_MELS, PATCH_SIZE
from branches.spec import MaskedPredictionSpec
from branches.transfer import to_device

WEIGHT = 0.5  # of the loss beside the objective's
MASKED = 0.3  # share of patches


class MaskedPrediction(nn.Module):
    """Masks patches, and a linear classifier of the labels for each tokenizer."""

    def __init__(self, spec: MaskedPredictionSpec, width: int) -> None:
        super().__init__()
        # In a list, not registered: they are neither trained nor saved.
        self._tokenizers = [load_tokenizer(file.path, file.sha256) for file in spec.tokenizers]
        self.heads = nn.ModuleList(nn.Linear(width, tokenizer.n_codes) for tokenizer in self._tokenizers)

    def mask(self, features: Tensor, mean_level: float) -> tuple[Tensor, Tensor]:
        """Mask a share of the patches of features (B, F, 128) with a level: features, and what is masked (B, P)."""
        n_clips, n_frames, _ = features.shape
        moments, bands = n_frames // PATCH_SIZE, N_MELS // PATCH_SIZE
        masked = to_device(torch.rand(n_clips, moments, bands) < MASKED, features.device)
        wide = masked.repeat_interleave(PATCH_SIZE, 1).repeat_interleave(PATCH_SIZE, 2)
        wide = F.pad(wide, (0, 0, 0, n_frames - wide.shape[1]))
        return features.masked_fill(wide, mean_level), masked.flatten(1)

    def labels(self, features: Tensor) -> list[Tensor]:
        """Labels (B, P) by each tokenizer of features (B, F, 128) that are not masked."""
        return [tokenizer.to(features.device).patch_labels(features) for tokenizer in self._tokenizers]

    def forward(self, patches: Tensor, labels: list[Tensor], counted: Tensor) -> Tensor:
        """Weighted mean cross-entropy, over the tokenizers, of the patches (B, P, D) that are `counted` (B, P)."""
        # All patches are told and weighted: to choose those that count, the host would have to wait for the GPU.
        share = (counted / counted.sum().clamp_min(1)).flatten()
        losses = [
            (share * F.cross_entropy(head(patches).flatten(0, 1), label.flatten(), reduction="none")).sum()
            for head, label in zip(self.heads, labels, strict=True)
        ]
        return WEIGHT * torch.stack(losses).mean()
