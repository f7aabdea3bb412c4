"""Augmentation: of waveforms by a NumPy generator, while a batch is put together; of features by torch's."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from branches.frontend import FBANK_STD
from branches.spec import AugmentationSpec, MixupSpec
from branches.transfer import to_device

# No share of a mixture is smaller, since its logarithm is taken.
_SMALLEST_SHARE = 1e-3


def add_noise(waveform: NDArray[np.float32], noise: NDArray[np.float32], snr_db: float) -> NDArray[np.float32]:
    """Waveform (n,) plus noise (n,) at a ratio of their energies of `snr_db`; silent noise adds nothing."""
    signal, disturbance = float(np.square(waveform).mean()), float(np.square(noise).mean())
    if disturbance == 0:
        return waveform
    return waveform + noise * np.float32(np.sqrt(signal / disturbance * 10 ** (-snr_db / 10)))


def spec_augment(features: Tensor, spec: AugmentationSpec, mean_level: float) -> Tensor:
    """Mask a stretch of frames and of mel bands of each clip: (B, F, M) normalised log-mels → same shape.

    Widths are uniform from 0 to the spec's largest, places uniform; masked values are `mean_level`, the mean of the
    log-mels in the backbone's pre-training. Park et al., "SpecAugment", 2019.
    """
    n_clips, n_frames, n_mels = features.shape
    frames = _stretch(n_clips, n_frames, spec.time_mask, features.device)
    bands = _stretch(n_clips, n_mels, spec.frequency_mask, features.device)
    return features.masked_fill(frames[:, :, None] | bands[:, None, :], mean_level)


def _stretch(n_clips: int, length: int, longest: int, device: torch.device) -> Tensor:
    """One masked stretch per clip: (B, length) bool."""
    width = torch.randint(0, min(longest, length) + 1, (n_clips, 1))
    start = (torch.rand(n_clips, 1) * (length - width + 1)).long()
    position = torch.arange(length)
    return to_device((position >= start) & (position < start + width), device)


def mixing(n_clips: int, spec: MixupSpec | None) -> tuple[Tensor, Tensor]:
    """Each clip's partner (B,) int64 and its own share (B,) in the mixture; 1 where it is not mixed.

    Zhang et al., "mixup: beyond empirical risk minimization", 2018.
    """
    if spec is None:
        return torch.arange(n_clips), torch.ones(n_clips)
    shares = torch.distributions.Beta(1.0, 1.0, validate_args=False).sample((n_clips,))  # uniform
    mixed = torch.rand(n_clips) < spec.probability
    return torch.randperm(n_clips), torch.where(mixed, shares, 1.0)


def mix(features: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """Mixtures (B, F, 128) of the powers of normalised log-mels: as sounds add, not as their logarithms would."""
    a, b = features, features[partner]
    weight = share[:, None, None].clamp(_SMALLEST_SHARE, 1 - _SMALLEST_SHARE)
    # Normalisation divides log powers by 2 σ; its mean shifts both alike.
    unit = 2 * FBANK_STD
    mixed = torch.logaddexp(a * unit + weight.log(), b * unit + (1 - weight).log()) / unit
    return torch.where(share[:, None, None] < 1, mixed, a)
