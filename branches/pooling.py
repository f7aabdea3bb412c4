"""Pooling: patches (B, P, D) → one vector per clip (B, D'), or one per frequency band (B, 8, D').

Padded patches have no say. Patches are in time-major order with the frequency fastest, so eight in a row are
one moment.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from branches.frames import N_MELS, PATCH_SIZE
from branches.spec import AttentiveStatisticsSpec, BandStatisticsSpec, MeanSpec, PoolingSpec, RelativeDeviationSpec

N_BANDS = N_MELS // PATCH_SIZE


class Pooling(nn.Module):
    """The pooling of a spec for patches of width `dim`; only attentive statistics have weights.

    output_dim: width of a vector that comes out: D, or 2 D where deviations follow the means
    bands: vectors per clip; 1 means that there is no such dimension
    """

    def __init__(self, spec: PoolingSpec, dim: int) -> None:
        super().__init__()
        self.spec = spec
        self.bands = N_BANDS if spec.keeps_bands else 1
        self.output_dim = 2 * dim if isinstance(spec, (AttentiveStatisticsSpec, BandStatisticsSpec)) else dim
        if isinstance(spec, AttentiveStatisticsSpec):
            self.attention = nn.Sequential(nn.Linear(dim, dim // 2), nn.Tanh(), nn.Linear(dim // 2, 1))

    def forward(self, patches: Tensor, padding: Tensor | None) -> Tensor:
        """(B, P, D) and padded patches (B, P), True = padding, or None → (B, D') or (B, 8, D')."""
        if isinstance(self.spec, MeanSpec):
            return _mean(patches, padding)
        if isinstance(self.spec, AttentiveStatisticsSpec):
            return self._attentive_statistics(patches, padding)
        moments = patches.reshape(len(patches), -1, N_BANDS, patches.shape[2])  # (B, T, 8, D)
        padded = None if padding is None else padding[:, ::N_BANDS]  # (B, T): a moment's bands are padded together
        mean = _mean(moments, padded)
        if isinstance(self.spec, BandStatisticsSpec):
            variance = _mean((moments - mean[:, None]).square(), padded)
            return torch.cat([mean, (variance + 1e-6).sqrt()], dim=-1)
        if isinstance(self.spec, RelativeDeviationSpec):
            return _relative_deviation(moments, mean, padded, self.spec.gamma)
        return mean

    def _attentive_statistics(self, patches: Tensor, padding: Tensor | None) -> Tensor:
        """Attention-weighted mean and standard deviation: (B, P, D) → (B, 2 D).

        Okabe, Koshinaka and Shinoda, "Attentive statistics pooling for deep speaker embedding", 2018.
        """
        energy = self.attention(patches).squeeze(-1)
        if padding is not None:
            energy = energy.masked_fill(padding, float("-inf"))
        weights = energy.softmax(dim=1)
        mean = torch.einsum("bp,bpd->bd", weights, patches)
        variance = torch.einsum("bp,bpd->bd", weights, (patches - mean[:, None]).square())
        return torch.cat([mean, (variance + 1e-6).sqrt()], dim=1)


def _mean(vectors: Tensor, padding: Tensor | None) -> Tensor:
    """Mean of the vectors (B, P, …) that are not padding (B, P): (B, …)."""
    if padding is None:
        return vectors.mean(dim=1)
    weights = (~padding).to(vectors.dtype)
    return torch.einsum("bp,bp...->b...", weights / weights.sum(dim=1, keepdim=True), vectors)


def _relative_deviation(moments: Tensor, mean: Tensor, padded: Tensor | None, gamma: float) -> Tensor:
    """Mean over time of each band with weights (1 + d / d_max)^γ: (B, T, 8, D) and plain means → (B, 8, D).

    d is a patch's distance to its band's plain mean, so what departs from the steady sound counts more.
    """
    # Never 0, where a norm has no gradient.
    distance = torch.linalg.vector_norm(moments - mean[:, None] + 1e-12, dim=-1)
    if padded is not None:
        distance = distance.masked_fill(padded[..., None], 0.0)
    weights = (1 + distance / distance.amax(dim=1, keepdim=True).clamp_min(1e-12)) ** gamma
    if padded is not None:
        weights = weights.masked_fill(padded[..., None], 0.0)
    return torch.einsum("btk,btkd->bkd", weights / weights.sum(dim=1, keepdim=True), moments)
