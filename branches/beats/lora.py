"""Low-rank adapters of the encoder's projections: W + (alpha / rank) · B A, W staying as it was.

Hu et al. 2021, arXiv:2106.09685.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from branches.beats.backbone import BEATs
from branches.spec import LoraSpec


class LoRALinear(nn.Linear):
    """A linear layer with an adapter; without training it gives what the layer gave.

    lora_a (rank, in) is random and lora_b (out, rank) zero at first. The names of weight and bias stay.
    """

    def __init__(self, base: nn.Linear, spec: LoraSpec) -> None:
        super().__init__(base.in_features, base.out_features, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.scaling = spec.alpha / spec.rank
        self.lora_a = nn.Parameter(base.weight.new_empty(spec.rank, base.in_features))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, spec.rank))
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


def add_lora(model: BEATs, spec: LoraSpec) -> list[nn.Parameter]:
    """Put adapters on the target projections of every layer, drawn from torch's global generator; their parameters."""
    adapters = []
    for layer in model.layers:
        for name in spec.targets:
            holder = layer if name in ("fc1", "fc2") else layer.self_attn
            adapter = LoRALinear(getattr(holder, name), spec)
            setattr(holder, name, adapter)
            adapters += [adapter.lora_a, adapter.lora_b]
    return adapters


def merge_lora(model: BEATs) -> None:
    """Make the adapters part of the weights, so that they cost nothing; a model without adapters stays as it is."""
    for holder in list(model.layers.modules()):
        for name, layer in holder.named_children():
            if isinstance(layer, LoRALinear):
                setattr(holder, name, layer.merged())
