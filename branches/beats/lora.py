"""Low-rank adapters of the encoder's projections: W + (alpha / rank) · B A, W staying as it was.

Hu et al. 2021, arXiv:2106.09685.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn
from torch.nn import functional as F

from branches.beats.backbone import BEATs
from branches.beats.config import LoRAConfig
from branches.beats.encoder import EncoderLayer
from scoring.errors import InputError

_IN_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")


class LoRALinear(nn.Linear):
    """A linear layer with an adapter; without training it gives what the layer gave.

    lora_a (rank, in) is random and lora_b (out, rank) zero at first. The names of weight and bias stay.
    """

    def __init__(self, base: nn.Linear, lora: LoRAConfig) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.scaling = lora.alpha / lora.rank
        self.lora_a = nn.Parameter(base.weight.new_empty(lora.rank, base.in_features))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, lora.rank))
        nn.init.kaiming_uniform_(self.lora_a, a=5**0.5)

    def forward(self, input: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return super().forward(input) + self.scaling * F.linear(F.linear(input, self.lora_a), self.lora_b)

    def merged(self) -> nn.Linear:
        """A plain layer that gives the same."""
        plain = nn.Linear(self.in_features, self.out_features, device="meta")
        plain.weight = nn.Parameter(self.weight.detach() + self.scaling * self.lora_b.detach() @ self.lora_a.detach())
        plain.bias = self.bias
        return plain


def add_lora(model: BEATs, lora: LoRAConfig) -> None:
    """Put adapters on the target projections of every layer; uses torch's global generator.

    Raises:
        InputError: the model has adapters already.
    """
    if model.config.lora is not None:
        raise InputError("this BEATs checkpoint has LoRA adapters already; merge them first (merge_lora)")
    for holder, name in _targets(model, lora):
        setattr(holder, name, LoRALinear(getattr(holder, name), lora))
    model.config = replace(model.config, lora=lora)


def merge_lora(model: BEATs) -> None:
    """Make the adapters part of the weights, so that they cost nothing; a model without adapters stays as it is."""
    if model.config.lora is None:
        return
    for holder, name in _targets(model, model.config.lora):
        setattr(holder, name, getattr(holder, name).merged())
    model.config = replace(model.config, lora=None)


def lora_parameters(model: BEATs) -> list[nn.Parameter]:
    """The adapters' parameters."""
    return [parameter for name, parameter in model.named_parameters() if name.rpartition(".")[2].startswith("lora_")]


def _targets(model: BEATs, lora: LoRAConfig) -> list[tuple[nn.Module, str]]:
    """The modules that hold a target projection, each with its name there."""
    layers = [layer for layer in model.layers if isinstance(layer, EncoderLayer)]
    return [(layer.self_attn if name in _IN_ATTENTION else layer, name) for layer in layers for name in lora.targets]
