"""Strategies: which part of the backbone fine-tuning may change."""

from __future__ import annotations

from torch import nn

from branches.spec import FullSpec, PartialSpec, StrategySpec
from scoring.errors import InputError


def prepare(backbone: nn.Module, strategy: StrategySpec) -> None:
    """Mark the backbone's parameters as trainable or not.

    Raises
    ------
    InputError
        If more top layers are asked for than the backbone has.
    """
    if isinstance(strategy, FullSpec):
        backbone.requires_grad_(True)
        return
    _train_top_layers(backbone, strategy)


def _train_top_layers(backbone: nn.Module, strategy: PartialSpec) -> None:
    layers = list(backbone.layers)  # type: ignore[arg-type]
    if strategy.layers > len(layers):
        raise InputError(
            f"strategy partial: layers is {strategy.layers}, the backbone has {len(layers)}; use full instead"
        )
    backbone.requires_grad_(False)
    for layer in layers[len(layers) - strategy.layers :]:
        layer.requires_grad_(True)
