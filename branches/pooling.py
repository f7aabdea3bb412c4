"""Pooling: patches (B, P, D) → one vector per clip; padded patches have no say."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MeanPooling(nn.Module):
    """Mean over patches: (B, P, D) → (B, D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.output_dim = dim

    def forward(self, patches: Tensor, padding: Tensor | None) -> Tensor:
        """`padding` (B, P) is True at padded patches."""
        weights = torch.ones_like(patches[..., 0]) if padding is None else (~padding).to(patches.dtype)
        weights = weights / weights.sum(dim=1, keepdim=True)
        return torch.einsum("bp,bpd->bd", weights, patches)


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
        patches = patches.float()  # under bf16 the variance below would cancel
        energy = self.attention(patches).squeeze(-1).float()
        if padding is not None:
            energy = energy.masked_fill(padding, float("-inf"))
        weights = energy.softmax(dim=1)
        mean = torch.einsum("bp,bpd->bd", weights, patches)
        variance = torch.einsum("bp,bpd->bd", weights, (patches - mean[:, None]).square())
        return torch.cat([mean, (variance + 1e-6).sqrt()], dim=1)


POOLINGS: dict[str, type[MeanPooling] | type[AttentiveStatisticsPooling]] = {
    "mean": MeanPooling,
    "attentive_statistics": AttentiveStatisticsPooling,
}
