"""Strategies: which part of the backbone fine-tuning may change, and how fast."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from branches.beats import BEATs
from branches.beats.lora import add_lora
from branches.spec import FullSpec, LoraSpec, PartialSpec, StrategySpec


class ParameterGroup(NamedTuple):
    """Parameters to train, with the factor on their learning rate."""

    params: list[nn.Parameter]
    factor: float = 1.0


def prepare(backbone: BEATs, strategy: StrategySpec) -> list[ParameterGroup]:
    """Mark the backbone's parameters as trainable or not, put adapters in; the groups to train.

    LoRA draws its adapters from torch's global generator.
    """
    backbone.requires_grad_(False)
    groups = _groups(backbone, strategy)
    for group in groups:
        for parameter in group.params:
            parameter.requires_grad_(True)
    return groups


def _groups(backbone: BEATs, strategy: StrategySpec) -> list[ParameterGroup]:
    layers = [list(layer.parameters()) for layer in backbone.layers]
    match strategy:
        case LoraSpec():
            return [ParameterGroup(add_lora(backbone, strategy))]
        case PartialSpec():
            return [ParameterGroup(layer) for layer in layers[max(0, len(layers) - strategy.layers) :]]
        case FullSpec(layer_decay=decay):
            # Each layer at the rate of the one above times the decay; what lies before the layers, at one further down.
            groups = [ParameterGroup(layer, decay**below) for below, layer in enumerate(reversed(layers))]
            in_layers = {id(p) for layer in layers for p in layer}
            rest = [p for p in backbone.parameters() if id(p) not in in_layers]
            return [*groups, ParameterGroup(rest, decay ** len(layers))]
    return []
