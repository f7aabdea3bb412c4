"""Log-mels in place of a network's patches: the baseline, and a branch that errs otherwise than networks do.

The baseline is what a training has to be better than. With 64 bands and standardised dimensions, Mahalanobis distances
reached an Omega of 75.3 on four real machines and 85.7 on a fifth (not standardised 72.2 and 81.9), and 66.6 and 66.0
on two generated sets, where not standardising gave 71.0 and 70.2: real machines decided.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from branches.frames import N_MELS
from branches.pooling import N_BANDS
from scoring.errors import InputError

BANDS = 64


class LogMel(nn.Module):
    """A backbone without weights: its only layer is log-mels, in patches of one frame and an eighth of 64 mel bands.

    Pooled by `band_statistics` it gives mean and standard deviation over time of each of the 64 bands.
    """

    embed_dim = BANDS // N_BANDS

    def __init__(self) -> None:
        super().__init__()
        means = torch.eye(BANDS).repeat_interleave(N_MELS // BANDS, dim=0) * BANDS / N_MELS
        self.to_bands = nn.Parameter(means, requires_grad=False)

    def layer_numbers(self, layers: Sequence[int]) -> list[int]:
        """Numbers of the outputs that `encode` means by `layers`; `InputError` if there is no such one."""
        if not set(layers) <= {0, -1}:
            raise InputError(f"layers {list(layers)}: log_mel has one output, -1")
        return [0] * len(layers)

    def encode(
        self, features: Tensor, padding: Tensor | None, layers: Sequence[int] = (-1,)
    ) -> tuple[Tensor, Tensor | None]:
        """Log-mels (B, F, 128), padded frames (B, F) or None → patches (B, 8 F, 8), their padding (B, 8 F) or None."""
        patches = (features @ self.to_bands).reshape(len(features), -1, self.embed_dim)
        return patches, None if padding is None else padding.repeat_interleave(N_BANDS, dim=1)
