"""Pooling: patches (B, P, D) → one vector per clip (B, D'), or one per frequency band (B, 8, D).

Padded patches have no say. Patches are in time-major order with the frequency fastest, so eight in a row are
one moment.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from branches.frames import N_MELS, PATCH_SIZE
from branches.spec import (
    AttentiveStatisticsSpec,
    BandMeanSpec,
    BandStatisticsSpec,
    GeneralisedMeanSpec,
    MeanSpec,
    PoolingSpec,
    RelativeDeviationSpec,
)

N_BANDS = N_MELS // PATCH_SIZE


class Pooling(nn.Module):
    """Base of the poolings.

    output_dim: width of what comes out
    bands: vectors per clip; 1 means that there is no such dimension
    """

    output_dim: int
    bands = 1

    def __init__(self, spec: PoolingSpec, dim: int) -> None:
        super().__init__()
        self.output_dim = dim

    def forward(self, patches: Tensor, padding: Tensor | None) -> Tensor:
        """(B, P, D) and padded patches (B, P), True = padding, or None → (B, D') or (B, bands, D')."""
        raise NotImplementedError


class MeanPooling(Pooling):
    """Mean over patches."""

    def forward(self, patches: Tensor, padding: Tensor | None) -> Tensor:
        """See `Pooling.forward`."""
        return _mean(patches, padding)


class GeneralisedMeanPooling(Pooling):
    """(mean of x^p)^(1/p) over patches, with the sign of x kept: (B, P, D) → (B, D).

    Radenović, Tolias and Chum, "Fine-tuning CNN image retrieval with no human annotation", 2019, for features
    that are not negative; those of a transformer are of both signs, so powers are signed. The power is fixed.
    """

    def __init__(self, spec: GeneralisedMeanSpec, dim: int) -> None:
        super().__init__(spec, dim)
        self.power = spec.power

    def forward(self, patches: Tensor, padding: Tensor | None) -> Tensor:
        """See `Pooling.forward`."""
        return _signed_power(_mean(_signed_power(patches, self.power), padding), 1 / self.power)


class AttentiveStatisticsPooling(Pooling):
    """Attention-weighted mean and standard deviation: (B, P, D) → (B, 2 D).

    Okabe, Koshinaka and Shinoda, "Attentive statistics pooling for deep speaker embedding", 2018.
    """

    def __init__(self, spec: AttentiveStatisticsSpec, dim: int) -> None:
        super().__init__(spec, dim)
        self.output_dim = 2 * dim
        self.attention = nn.Sequential(nn.Linear(dim, dim // 2), nn.Tanh(), nn.Linear(dim // 2, 1))

    def forward(self, patches: Tensor, padding: Tensor | None) -> Tensor:
        """See `Pooling.forward`."""
        energy = self.attention(patches).squeeze(-1)
        if padding is not None:
            energy = energy.masked_fill(padding, float("-inf"))
        weights = energy.softmax(dim=1)
        mean = torch.einsum("bp,bpd->bd", weights, patches)
        variance = torch.einsum("bp,bpd->bd", weights, (patches - mean[:, None]).square())
        return torch.cat([mean, (variance + 1e-6).sqrt()], dim=1)


class BandMeanPooling(Pooling):
    """Mean over time of each frequency band: (B, P, D) → (B, 8, D)."""

    bands = N_BANDS

    def forward(self, patches: Tensor, padding: Tensor | None) -> Tensor:
        """See `Pooling.forward`."""
        return _band_mean(_by_band(patches), _moments(padding))


class BandStatisticsPooling(Pooling):
    """Mean and standard deviation over time of each frequency band: (B, P, D) → (B, 8, 2 D)."""

    bands = N_BANDS

    def __init__(self, spec: BandStatisticsSpec, dim: int) -> None:
        super().__init__(spec, dim)
        self.output_dim = 2 * dim

    def forward(self, patches: Tensor, padding: Tensor | None) -> Tensor:
        """See `Pooling.forward`."""
        moments, padded = _by_band(patches), _moments(padding)
        mean = _band_mean(moments, padded)
        variance = _band_mean((moments - mean[:, None]).square(), padded)
        return torch.cat([mean, (variance + 1e-6).sqrt()], dim=-1)


class RelativeDeviationPooling(Pooling):
    """Mean over time of each frequency band with weights (1 + d / d_max)^γ: (B, P, D) → (B, 8, D).

    d is a patch's distance to its band's plain mean, so what departs from the steady sound counts more.
    """

    bands = N_BANDS

    def __init__(self, spec: RelativeDeviationSpec, dim: int) -> None:
        super().__init__(spec, dim)
        self.gamma = spec.gamma

    def forward(self, patches: Tensor, padding: Tensor | None) -> Tensor:
        """See `Pooling.forward`."""
        moments, padded = _by_band(patches), _moments(padding)
        mean = _band_mean(moments, padded)
        # Never 0, where a norm has no gradient.
        distance = torch.linalg.vector_norm(moments - mean[:, None] + 1e-12, dim=-1)
        if padded is not None:
            distance = distance.masked_fill(padded[..., None], 0.0)
        weights = (1 + distance / distance.amax(dim=1, keepdim=True).clamp_min(1e-12)) ** self.gamma
        if padded is not None:
            weights = weights.masked_fill(padded[..., None], 0.0)
        return torch.einsum("btk,btkd->bkd", weights / weights.sum(dim=1, keepdim=True), moments)


def _by_band(patches: Tensor) -> Tensor:
    """(B, P, D) → (B, T, 8, D)."""
    return patches.reshape(len(patches), -1, N_BANDS, patches.shape[2])


def _band_mean(moments: Tensor, padded: Tensor | None) -> Tensor:
    """(B, T, 8, D) → (B, 8, D)."""
    return _mean(moments.flatten(2), padded).reshape(len(moments), N_BANDS, -1)


def _moments(padding: Tensor | None) -> Tensor | None:
    """Padding of patches (B, P) → of moments (B, T): a moment's bands are padded together."""
    return None if padding is None else padding[:, ::N_BANDS]


def _mean(vectors: Tensor, padding: Tensor | None) -> Tensor:
    """Mean of the vectors (B, P, D) that are not padding: (B, D)."""
    if padding is None:
        return vectors.mean(dim=1)
    weights = (~padding).to(vectors.dtype)
    return torch.einsum("bp,bpd->bd", weights / weights.sum(dim=1, keepdim=True), vectors)


def _signed_power(x: Tensor, power: float) -> Tensor:
    # More than |x|, so that a root has a gradient at 0.
    return x * (x.abs() + 1e-8).pow(power - 1)


POOLINGS: dict[type, Any] = {
    MeanSpec: MeanPooling,
    AttentiveStatisticsSpec: AttentiveStatisticsPooling,
    GeneralisedMeanSpec: GeneralisedMeanPooling,
    BandMeanSpec: BandMeanPooling,
    BandStatisticsSpec: BandStatisticsPooling,
    RelativeDeviationSpec: RelativeDeviationPooling,
}


def build_pooling(spec: PoolingSpec, dim: int) -> Pooling:
    """The pooling of a spec for patches of width `dim`."""
    pooling: Pooling = POOLINGS[type(spec)](spec, dim)
    return pooling
