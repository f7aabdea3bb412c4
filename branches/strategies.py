"""Strategies: which part of the backbone fine-tuning may change."""

from __future__ import annotations

from torch import nn

from branches.spec import FullSpec, PartialSpec, StrategySpec


def prepare(backbone: nn.Module, strategy: StrategySpec) -> None:
    """Mark the backbone's parameters as trainable or not."""
    backbone.requires_grad_(isinstance(strategy, FullSpec))
    if isinstance(strategy, PartialSpec):
        layers = list(backbone.layers)  # type: ignore[arg-type]
        for layer in layers[max(0, len(layers) - strategy.layers) :]:
            layer.requires_grad_(True)
