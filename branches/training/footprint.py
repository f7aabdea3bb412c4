"""How much memory a training takes on a GPU, by what its operations keep, and what to do where that is too much.

On a GPU the encoder trains in bfloat16 under autocast. What is counted was compared with the tensors that autograd
keeps (`tests/branches/training/test_footprint.py`); what a GPU then takes is measured by `make gpu`.
"""

from __future__ import annotations

from dataclasses import dataclass

from branches.beats.config import BEATsConfig
from branches.frames import N_MELS, PATCH_SIZE
from branches.model import BranchModel
from branches.spec import FullSpec, LoraSpec, PartialSpec, StrategySpec

MARGIN = 0.9  # of what is free: the allocator cannot use all of it


@dataclass(frozen=True)
class Footprint:
    """Bytes of a training: weights, gradients, moments and averages; what layers keep; what comes and goes."""

    state: int
    activations: int
    transient: int

    @property
    def total(self) -> int:
        """All of it at once, the peak."""
        return self.state + self.activations + self.transient


def footprint(model: BranchModel, frames: int, recompute: bool = False) -> Footprint:
    """What the training of a branch needs with batches of `frames` frames.

    recompute: whether layers keep their inputs alone (Chen et al. 2016, arXiv:1604.06174)
    """
    spec, config = model.spec, model.beats.config
    batch, patches = spec.training.batch_size, frames // PATCH_SIZE * (N_MELS // PATCH_SIZE)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # Gradient, two moments, and the average if it is kept, all in float32.
    state = 4 * sum(p.numel() for p in model.parameters()) + trained * (12 + 4 * bool(spec.training.average))
    layers, kept = _trained_layers(spec.strategy, config), layer_bytes(config, spec.strategy, patches)
    width = config.encoder_embed_dim
    logits = 4 * config.encoder_attention_heads * patches**2  # of one clip in float32
    copies = 2 * sum(p.numel() for p in model.beats.layers.parameters())  # weights in bfloat16
    activations = copies + logits + batch * layers * (4 * width * patches if recompute else kept)
    # Gradients of a layer's logits, and with `recompute` what the layer under way keeps.
    transient = 2 * batch * logits + (batch * kept if recompute else 0)
    return Footprint(state, activations, transient)


def _trained_layers(strategy: StrategySpec, config: BEATsConfig) -> int:
    """Layers that gradients pass through."""
    match strategy:
        case FullSpec() | LoraSpec():
            return config.encoder_layers
        case PartialSpec(layers=layers):
            return min(layers, config.encoder_layers)
    return 0


def layer_bytes(config: BEATsConfig, strategy: StrategySpec, patches: int) -> int:
    """What autograd keeps of a clip of P patches for each layer that gradients pass through.

    For each patch: the inputs of q, k, v, out, fc1, fc2 where their weights are trained, q, k, v twice the gate's and
    the attention's output in bfloat16; the inputs of two norms in float32; the input of GELU; a row of logits for each
    head. Of adapters their inputs, and what they bring these down to.
    """
    width, hidden = config.encoder_embed_dim, config.encoder_ffn_embed_dim
    if isinstance(strategy, LoraSpec):
        inputs = sum(hidden if target == "fc2" else width for target in strategy.targets)
        of_patch = 16 * width + 2 * hidden + 2 * (inputs + strategy.rank * len(strategy.targets))
    else:
        of_patch = 26 * width + 4 * hidden
    return patches * (of_patch + 2 * config.encoder_attention_heads * patches)
