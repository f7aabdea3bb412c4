"""Strategies: which part of the backbone fine-tuning may change, and how fast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from branches.beats import BEATs
from branches.beats.lora import add_lora
from branches.spec import FrozenSpec, FullSpec, HeadSpec, LoraSpec, PartialSpec, StrategySpec


@dataclass(frozen=True)
class Group:
    """Parameters of the backbone to train, with the factor on their learning rate."""

    parameters: list[nn.Parameter]
    factor: float = 1.0


def _nothing(backbone: BEATs, strategy: FrozenSpec | HeadSpec) -> list[Group]:
    return []


def _top_layers(backbone: BEATs, strategy: PartialSpec) -> list[Group]:
    layers = list(backbone.layers)
    return [Group(list(layer.parameters())) for layer in layers[max(0, len(layers) - strategy.layers) :]]


def _everything(backbone: BEATs, strategy: FullSpec) -> list[Group]:
    """Each layer at the rate of the one above times the decay; what lies before the layers, at one further down."""
    layers = list(backbone.layers)
    groups = [
        Group(list(layer.parameters()), strategy.layer_decay**below) for below, layer in enumerate(reversed(layers))
    ]
    in_layers = {id(p) for group in groups for p in group.parameters}
    rest = [p for p in backbone.parameters() if id(p) not in in_layers]
    return [*groups, Group(rest, strategy.layer_decay ** len(layers))]


def _adapters(backbone: BEATs, strategy: LoraSpec) -> list[Group]:
    return [Group(add_lora(backbone, strategy))]


STRATEGIES: dict[type, Callable[[BEATs, Any], list[Group]]] = {
    FrozenSpec: _nothing,
    HeadSpec: _nothing,
    PartialSpec: _top_layers,
    FullSpec: _everything,
    LoraSpec: _adapters,
}


def prepare(backbone: BEATs, strategy: StrategySpec) -> list[Group]:
    """Mark the backbone's parameters as trainable or not, put adapters in; the groups to train.

    LoRA draws its adapters from torch's global generator.
    """
    backbone.requires_grad_(False)
    groups = STRATEGIES[type(strategy)](backbone, strategy)
    for group in groups:
        for parameter in group.parameters:
            parameter.requires_grad_(True)
    return groups
