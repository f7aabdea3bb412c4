"""The BEATs encoder: embedded patches → positional convolution → transformer layers.

Modules carry the names of the released checkpoints, so that a state dict is read and written as it is
(`checkpoint.py` sees to the one exception, the table of relative positions).
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from branches.beats.attention import GatedAttention, relative_bias
from branches.beats.config import BEATsConfig


class PositionalConv(nn.Module):
    """Grouped convolution over the patches, weight-normed for each kernel position.

    The weight norm is computed here because the released parameters, `weight_g` and `weight_v`, are those of a
    PyTorch function that is deprecated.
    """

    def __init__(self, dim: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight_g = nn.Parameter(torch.ones(1, 1, kernel))
        self.weight_v = nn.Parameter(torch.ones(dim, dim // groups, kernel))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, P, D) → (B, P, D)."""
        if not x.is_cpu:
            return self._convolve(x)
        # torch 2.11's bfloat16 convolution on a CPU gives wrong numbers for groups of 8 channels.
        with torch.autocast("cpu", enabled=False):
            return self._convolve(x.to(self.weight_v.dtype))

    def _convolve(self, x: Tensor) -> Tensor:
        kernel = self.weight_v.shape[-1]
        # On a CPU eight times as fast as vector_norm over two dimensions, which has to gather what it sums.
        norm = self.weight_v.flatten(0, 1).square().sum(dim=0).sqrt()
        weight = self.weight_v * (self.weight_g / norm)
        # As an image of height 1 the patches keep their channels-last layout, which is 1.6 times as fast on a CPU.
        image = x.transpose(1, 2).unsqueeze(2)
        y = F.conv2d(image, weight.unsqueeze(2), self.bias, padding=(0, kernel // 2), groups=self.groups)
        # An even kernel gives one output too many.
        return F.gelu(y.squeeze(2)[..., : x.shape[1]]).transpose(1, 2)


class EncoderLayer(nn.Module):
    """Attention and feed-forward network, post-norm (with deep norm) or pre-norm."""

    def __init__(self, config: BEATsConfig) -> None:
        super().__init__()
        dim = config.encoder_embed_dim
        self.pre_norm = config.layer_norm_first
        # Deep norm (Wang et al. 2022, arXiv:2203.00555).
        scaled = config.deep_norm and not self.pre_norm
        self.residual_scale = (2 * config.encoder_layers) ** 0.25 if scaled else 1.0
        self.self_attn = GatedAttention(dim, config.encoder_attention_heads, config.attention_dropout)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, config.encoder_ffn_embed_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_embed_dim, dim)
        self.final_layer_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(config.dropout)
        self.activation_dropout = nn.Dropout(config.activation_dropout)

    def forward(self, x: Tensor, position_bias: Tensor, padding_bias: Tensor | None) -> Tensor:
        """(B, P, D) → (B, P, D)."""
        if self.pre_norm:
            x = x + self.dropout(self.self_attn(self.self_attn_layer_norm(x), position_bias, padding_bias))
            x = x + self._feed_forward(self.final_layer_norm(x))
        else:
            attended = self.dropout(self.self_attn(x, position_bias, padding_bias))
            x = self.self_attn_layer_norm(torch.add(attended, x, alpha=self.residual_scale))
            x = self.final_layer_norm(torch.add(self._feed_forward(x), x, alpha=self.residual_scale))
        return x

    def _feed_forward(self, x: Tensor) -> Tensor:
        hidden = self.activation_dropout(F.gelu(self.fc1(x)))
        out: Tensor = self.dropout(self.fc2(hidden))
        return out


def apply_layer(layer: EncoderLayer, x: Tensor, position_bias: Tensor, padding_bias: Tensor | None) -> Tensor:
    """What a layer gives."""
    out: Tensor = layer(x, position_bias, padding_bias)
    return out


def recomputed(apply: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Keeps a layer's inputs alone, and computes it again for its gradients."""
    return partial(checkpoint, apply, use_reentrant=False)


class Encoder(nn.Module):
    """Positional convolution and transformer layers.

    apply_layer: how layers are called while training; `recomputed`, or compiled, does the same at another cost
    """

    apply_layer: Callable[..., Tensor]

    def __init__(self, config: BEATsConfig) -> None:
        super().__init__()
        dim = config.encoder_embed_dim
        self.config = config
        self.apply_layer = apply_layer
        self.pos_conv = nn.ModuleList([PositionalConv(dim, config.conv_pos, config.conv_pos_groups)])
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.layer_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(config.dropout)
        # All layers use one table; as in the released files it is filed under the first.
        heads = config.encoder_attention_heads
        # Initialising it on the meta device would load torch's compiler, which takes a second.
        table = nn.Embedding(config.num_buckets, heads, _weight=torch.empty(config.num_buckets, heads))
        self.layers[0].self_attn.relative_attention_bias = table  # type: ignore[union-attr]

    def forward(self, x: Tensor, patch_mask: Tensor | None, depth: int) -> list[Tensor]:
        """(B, P, D) → the input of the first layer and the outputs of the first `depth` layers, each (B, P, D)."""
        if patch_mask is not None:
            x = x.masked_fill(patch_mask.unsqueeze(-1), 0.0)
        x = x + self.pos_conv[0](x)
        if not self.config.layer_norm_first:
            x = self.layer_norm(x)
        x = self.dropout(x)
        bias = self._position_bias(x.shape[1])
        padding_bias = _padding_bias(patch_mask, bias.dtype)
        outputs = [x]
        apply = self.apply_layer if self.training else apply_layer
        for layer, skipped in zip(self.layers[:depth], self._skipped(depth), strict=True):
            if not skipped:
                x = apply(layer, x, bias, padding_bias)  # type: ignore[arg-type]
            outputs.append(x)
        if self.config.layer_norm_first and depth == len(self.layers):
            outputs[-1] = self.layer_norm(x)
        return outputs

    def _position_bias(self, length: int) -> Tensor:
        table: Tensor = self.layers[0].self_attn.relative_attention_bias.weight  # type: ignore[union-attr, assignment]
        return relative_bias(table, length, self.config.max_distance)

    def _skipped(self, depth: int) -> list[bool]:
        p = self.config.encoder_layerdrop
        if not self.training or p == 0:
            return [False] * depth
        drawn: list[bool] = (torch.rand(depth) < p).tolist()
        return drawn


def _padding_bias(patch_mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """(B, P) bool → (B, 1, 1, P): 0, or the lowest number, finite in bfloat16 too: all of padding would be NaN else."""
    if patch_mask is None:
        return None
    zeros = torch.zeros(patch_mask.shape, dtype=dtype, device=patch_mask.device)
    return zeros.masked_fill(patch_mask, torch.finfo(torch.bfloat16).min)[:, None, None, :]
