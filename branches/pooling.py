"""Pooling: patches (B, P, D) → one vector per clip; padded patches have no say."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from branches.frontend import N_MELS, PATCH_SIZE

N_BANDS = N_MELS // PATCH_SIZE


class MeanPooling(nn.Module):
    """Mean over patches: (B, P, D) → (B, D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.output_dim = dim

    def forward(self, patches: Tensor, padding: Tensor | None) -> Tensor:
        """`padding` (B, P) is True at padded patches."""
        return _mean(patches, padding)


class AttentiveStatisticsPooling(nn.Module):
    """Attention-weighted mean and standard deviation: (B, P, D) → (B, 2 D).

    Okabe, Koshinaka and Shinoda, "Attentive statistics pooling for deep speaker embedding", 2018.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.output_dim = 2 * dim
        self.attention = nn.Sequential(nn.Linear(dim, dim // 2), nn.Tanh(), nn.Linear(dim // 2, 1))

    def forward(self, patches: Tensor, padding: Tensor | None) -> Tensor:
        """`padding` (B, P) is True at padded patches."""
        energy = self.attention(patches).squeeze(-1)
        if padding is not None:
            energy = energy.masked_fill(padding, float("-inf"))
        weights = energy.softmax(dim=1)
        mean = torch.einsum("bp,bpd->bd", weights, patches)
        variance = torch.einsum("bp,bpd->bd", weights, (patches - mean[:, None]).square())
        return torch.cat([mean, (variance + 1e-6).sqrt()], dim=1)


class BandMeanPooling(nn.Module):
    """Mean over time of each frequency band, the bands one after another: (B, P, D) → (B, 8 D).

    Patches are in time-major order with the frequency fastest, so a row of 8 is one moment.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.output_dim = N_BANDS * dim

    def forward(self, patches: Tensor, padding: Tensor | None) -> Tensor:
        """`padding` (B, P) is True at padded patches; a moment's bands are padded together."""
        moments = patches.reshape(len(patches), -1, self.output_dim)
        return _mean(moments, None if padding is None else padding[:, ::N_BANDS])


def _mean(vectors: Tensor, padding: Tensor | None) -> Tensor:
    """Mean of the vectors (B, P, D) that are not padding: (B, D)."""
    if padding is None:
        return vectors.mean(dim=1)
    weights = (~padding).to(vectors.dtype)
    return torch.einsum("bp,bpd->bd", weights / weights.sum(dim=1, keepdim=True), vectors)


Pooling = MeanPooling | AttentiveStatisticsPooling | BandMeanPooling

POOLINGS: dict[str, type[Pooling]] = {
    "mean": MeanPooling,
    "band_mean": BandMeanPooling,
    "attentive_statistics": AttentiveStatisticsPooling,
}
