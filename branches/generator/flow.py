"""Flow matching along straight paths, and sampling with guidance from a partly noised reference.

Lipman et al., "Flow matching for generative modeling", 2023; Liu et al., "Flow straight and fast", 2023. A point of
the path from noise n to data x is (1 − t) n + t x, its velocity x − n.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from branches.generator.network import VelocityNetwork, path_scale


def flow_loss(network: VelocityNetwork, data: Tensor, noise: Tensor, t: Tensor, words: Tensor) -> Tensor:
    """Mean squared error of the velocity in units of what a linear guess leaves open: a scalar.

    data, noise: (B, F, 128); t: (B,) in [0, 1]; words: (B, K)
    """
    at = t[:, None, None]
    velocity = network((1 - at) * noise + at * data, t, words)
    return ((velocity - (data - noise)) * path_scale(t)).square().mean()


@torch.inference_mode()
def sample(
    network: VelocityNetwork,
    reference: Tensor,
    noise: Tensor,
    words: Tensor,
    strength: float,
    guidance: float,
    steps: int,
) -> Tensor:
    """Samples (B, F, 128): references moved to a condition.

    A reference is mixed with noise to the point 1 − `strength` of the path (Meng et al., "SDEdit", 2022) and follows
    the flow of the condition from there, in `steps` steps of Heun's method.

    reference, noise: (B, F, 128) of unit variance
    words: (B, K) the wanted conditions
    guidance: of the velocities v with and v₀ without condition, v₀ + guidance · (v − v₀) is followed (Ho and
        Salimans, "Classifier-free diffusion guidance", 2022)
    """
    times = torch.linspace(1 - strength, 1, steps + 1, device=reference.device)
    x = times[0] * reference + strength * noise
    for now, then in pairwise(times):
        first = _guided(network, x, now, words, guidance)
        second = _guided(network, x + (then - now) * first, then, words, guidance)
        x = x + (then - now) * (first + second) / 2
    return x


def _guided(network: VelocityNetwork, x: Tensor, t: Tensor, words: Tensor, guidance: float) -> Tensor:
    if guidance == 1:
        return network(x, t.expand(len(x)), words)
    both = network(torch.cat([x, x]), t.expand(2 * len(x)), torch.cat([words, torch.zeros_like(words)]))
    conditional, unconditional = both.chunk(2)
    return unconditional + guidance * (conditional - unconditional)
