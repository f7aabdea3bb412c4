"""The velocity network: ConvNeXt blocks along time, modulated by time and condition.

Liu et al., "A ConvNet for the 2020s", 2022, for the block; Peebles and Xie, "Scalable diffusion models with
transformers", 2023, for the modulation that starts at zero (adaLN-Zero). Convolutions rather than attention: a
machine sounds the same wherever a crop begins, and ten clips of a condition teach nothing about places.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from branches.frames import N_MELS
from branches.spec import GeneratorSpec

TOKEN_FRAMES = 4
"""Frames that make one token (40 ms)."""
_TIME_FEATURES = 64


class VelocityNetwork(nn.Module):
    """Velocity of the flow from noise to log-mels of zero mean and unit variance in each band.

    n_words: size of the vocabulary, 0 included
    """

    def __init__(self, spec: GeneratorSpec, n_words: int) -> None:
        super().__init__()
        width, token = spec.width, TOKEN_FRAMES * N_MELS
        self.words = nn.EmbeddingBag(n_words, width, mode="sum", padding_idx=0)
        self.time = nn.Sequential(nn.Linear(_TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        self.enter = nn.Linear(token, width)
        self.blocks = nn.ModuleList(Block(width, spec.kernel) for _ in range(spec.depth))
        self.modulation = _zero(nn.Linear(width, 2 * width))
        self.leave = _zero(nn.Linear(width, token))

    def forward(self, x: Tensor, t: Tensor, words: Tensor) -> Tensor:
        """Velocity (B, F, 128) at points x (B, F, 128) of the flow, F a multiple of `TOKEN_FRAMES`.

        t: (B,) from 0 (noise) to 1 (data)
        words: (B, K) numbers of the condition's words, padded with 0; all 0 is no condition

        The network gives only what the best linear guess lacks, scaled to unit variance: Karras et al.,
        "Elucidating the design space of diffusion-based generative models", 2022, for straight paths. So even
        untrained it samples noise with every band's mean and variance.
        """
        scale = path_scale(t)
        guess = (2 * t[:, None, None] - 1) / scale.square() * x
        conditioning = F.silu(self.time(_waves(t)) + self.words(words))
        tokens = self.enter((x / scale).reshape(len(x), -1, TOKEN_FRAMES * N_MELS))
        for block in self.blocks:
            tokens = block(tokens, conditioning)
        shift, stretch = self.modulation(conditioning)[:, None].chunk(2, dim=-1)
        tokens = F.layer_norm(tokens, tokens.shape[-1:]) * (1 + stretch) + shift
        rest = self.leave(tokens).float().reshape(x.shape)
        velocity: Tensor = guess + rest / scale
        return velocity


class Block(nn.Module):
    """One ConvNeXt block: (B, T, width) tokens and what it is told (B, width) → tokens."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.mix = nn.Conv1d(width, width, kernel, padding="same", groups=width)
        self.expand = nn.Linear(width, 4 * width)
        self.shrink = nn.Linear(4 * width, width)
        self.modulation = _zero(nn.Linear(width, 3 * width))

    def forward(self, tokens: Tensor, conditioning: Tensor) -> Tensor:
        """See the class."""
        shift, stretch, gate = self.modulation(conditioning)[:, None].chunk(3, dim=-1)
        mixed = self.mix(tokens.transpose(1, 2)).transpose(1, 2)
        mixed = F.layer_norm(mixed, mixed.shape[-1:]) * (1 + stretch) + shift
        out: Tensor = tokens + gate * self.shrink(F.gelu(self.expand(mixed)))
        return out


def path_scale(t: Tensor) -> Tensor:
    """Standard deviation (B, 1, 1) of (1 − t) · noise + t · data at times t (B,), both of unit variance."""
    return (t.square() + (1 - t).square()).sqrt()[:, None, None]


def _waves(t: Tensor) -> Tensor:
    """Sines and cosines (B, 64) of the time at wavelengths from 2π to 2π/1000."""
    rates = torch.exp(torch.linspace(0, math.log(1000), _TIME_FEATURES // 2, device=t.device))
    angles = t[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
