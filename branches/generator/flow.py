"""Flow matching along straight paths: the velocity network, its loss, and sampling from a partly noised reference.

Lipman et al., "Flow matching for generative modeling", 2023; Liu et al., "Flow straight and fast", 2023. A point of
the path from noise n to data x is (1 − t) n + t x, its velocity x − n.

The network has ConvNeXt blocks along time (Liu et al., "A ConvNet for the 2020s", 2022), modulated by time and
operating state, at first not at all (adaLN-Zero: Peebles and Xie, "Scalable diffusion models with transformers", 2023).
Convolutions rather than attention: a machine sounds the same wherever a crop begins, and ten clips of a state teach
nothing about places.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from branches.frames import N_MELS

TOKEN_FRAMES = 4
"""Frames that make one token (40 ms)."""
_KERNEL = 15  # tokens that a block mixes
_TIME_FEATURES = 64


class VelocityNetwork(nn.Module):
    """Velocity of the flow from noise to log-mels of zero mean and unit variance in each band."""

    def __init__(self, width: int, depth: int, n_words: int) -> None:
        super().__init__()
        token = TOKEN_FRAMES * N_MELS
        self.words = nn.Linear(n_words, width, bias=False)
        self.time = nn.Sequential(nn.Linear(_TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        self.enter = nn.Linear(token, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.modulation = _zero(nn.Linear(width, 2 * width))
        self.leave = _zero(nn.Linear(width, token))

    def forward(self, x: Tensor, t: Tensor, words: Tensor) -> Tensor:
        """Velocity (B, F, 128) at points x (B, F, 128) of the flow, F a multiple of `TOKEN_FRAMES`.

        t: (B,) from 0 (noise) to 1 (data)
        words: (B, words) of the operating state, see `branches.generator.states.RealClips`

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
    """One ConvNeXt block: (B, T, width) tokens and their conditioning (B, width) → tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv1d(width, width, _KERNEL, padding="same", groups=width)
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


def flow_loss(network: VelocityNetwork, data: Tensor, noise: Tensor, t: Tensor, words: Tensor) -> Tensor:
    """Mean squared error of the velocity in units of what a linear guess leaves open: a scalar.

    data, noise: (B, F, 128); t: (B,) in [0, 1]; words: (B, words)
    """
    at = t[:, None, None]
    velocity = network((1 - at) * noise + at * data, t, words)
    return ((velocity - (data - noise)) * path_scale(t)).square().mean()


@torch.inference_mode()
def sample(
    network: VelocityNetwork, reference: Tensor, noise: Tensor, words: Tensor, strength: float, steps: int
) -> Tensor:
    """Samples (B, F, 128): references moved to an operating state.

    A reference is mixed with noise to the point 1 − `strength` of the path (Meng et al., "SDEdit", 2022) and follows
    the flow of the state from there, in `steps` steps of Heun's method.

    reference, noise: (B, F, 128) of unit variance; words: (B, words) of the wanted states
    """
    times = torch.linspace(1 - strength, 1, steps + 1, device=reference.device)
    x = times[0] * reference + strength * noise
    for now, then in pairwise(times):
        first = network(x, now.expand(len(x)), words)
        second = network(x + (then - now) * first, then.expand(len(x)), words)
        x = x + (then - now) * (first + second) / 2
    return x


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
