"""Augmentation of training batches."""

from __future__ import annotations

import torch
from torch import Tensor

from branches.spec import AugmentationSpec


def spec_augment(features: Tensor, spec: AugmentationSpec) -> Tensor:
    """Mask a stretch of frames and of mel bands of each clip: (B, F, M) normalised log-mels → same shape.

    Widths are uniform from 0 to the spec's largest, places uniform; masked values are 0, the mean of BEATs'
    normalisation. Park et al., "SpecAugment", 2019. Randomness is torch's global generator.
    """
    n_clips, n_frames, n_mels = features.shape
    frames = _stretch(n_clips, n_frames, spec.time_mask, features.device)
    bands = _stretch(n_clips, n_mels, spec.frequency_mask, features.device)
    return features.masked_fill(frames[:, :, None] | bands[:, None, :], 0.0)


def _stretch(n_clips: int, length: int, longest: int, device: torch.device) -> Tensor:
    """One masked stretch per clip: (B, length) bool."""
    width = torch.randint(0, min(longest, length) + 1, (n_clips, 1))
    start = (torch.rand(n_clips, 1) * (length - width + 1)).long()
    place = torch.arange(length)
    return ((place >= start) & (place < start + width)).to(device)
