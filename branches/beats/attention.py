"""Self-attention with BEATs' gated relative position bias.

Weights are softmax(q·k / √d + g ⊙ r): r depends on the distance of two patches alone, through a table of buckets
as in T5 (Raffel et al. 2020, arXiv:1910.10683); the gate g is computed from each query, as in WavLM
(Chen et al. 2022, arXiv:2110.13900, section 3.1).
"""

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_GATE_UNITS = 8
"""Outputs of the gate's projection: two gates, each a sum of four."""


def distance_buckets(length: int, num_buckets: int, max_distance: int) -> Tensor:
    """Bucket (2 · length − 1,) int64 of every distance (key position − query position), from −(length−1) to length−1.

    Half of the buckets are for keys after the query. In each half, the first half of the buckets are one distance
    each, and the rest grow logarithmically up to `max_distance`.
    """
    distance = torch.arange(1 - length, length)
    per_side = num_buckets // 2
    exact = per_side // 2
    size = distance.abs()
    # Float32 and this order of operations decide on which side of a border a distance falls.
    log_ratio = torch.log(size.clamp_min(1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (log_ratio * (per_side - exact)).long()).clamp_max(per_side - 1)
    return torch.where(size < exact, size, far) + per_side * (distance > 0)


@lru_cache(maxsize=64)  # lengths: made anew, the host would wait at each step for the copy
def _buckets_on(device: torch.device, length: int, num_buckets: int, max_distance: int) -> Tensor:
    with torch.inference_mode(False):  # it may take part in training later
        return distance_buckets(length, num_buckets, max_distance).to(device)


def relative_bias(table: Tensor, length: int, max_distance: int) -> Tensor:
    """Position bias r (H, P, P) between all pairs of `length` patches; [h, i, j] is for query i and key j.

    table: (buckets, H), a value for each bucket and head
    max_distance: from which on all are in the last bucket
    """
    buckets_on = _buckets_on.__wrapped__ if torch.compiler.is_compiling() else _buckets_on
    buckets = buckets_on(table.device, length, table.shape[0], max_distance)
    by_distance = table[buckets].T
    # Row i holds the distances −i … P−1−i: a window that slides back by one from row to row. The layout matters:
    # every layer multiplies this by its gates, which is six times as slow with the heads innermost.
    return by_distance.unfold(1, length, 1).flip(1).contiguous()


def gated_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor,
    position_bias: Tensor,
    padding_bias: Tensor | None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q·k / √d + gate ⊙ position_bias + padding_bias) · v.

    Args:
        q, k, v: (B, H, P, d).
        gate: (B, H, P, 1).
        position_bias: (H, P, P).
        padding_bias: (B, 1, 1, P) or None.
        dropout: probability that an attention weight is dropped.

    Returns:
        (B, H, P, d).
    """
    if q.is_cpu and q.dtype == position_bias.dtype and dropout == 0.0 and not torch.compiler.is_compiling():
        out: Tensor = _ClipwiseAttention.apply(q, k, v, gate, position_bias, padding_bias)
        return out
    bias = gate * position_bias
    if padding_bias is not None:
        bias = bias + padding_bias
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), dropout_p=dropout)


class _ClipwiseAttention(torch.autograd.Function):
    """The same on a CPU, one clip at a time, with the weights computed again in the backward pass.

    PyTorch's fused CPU kernel has no gradient for the bias, and without it a training step keeps several arrays of
    B · H · P² numbers for each layer. Here a few arrays of one clip's H · P² are used again for every clip.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, gate: Tensor, position_bias: Tensor, padding_bias: Tensor | None
    ) -> Tensor:
        # The layout of the layer's input, so that the heads are joined again without a copy.
        out = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        scratch = torch.empty_like(position_bias)
        for i in range(len(q)):
            bias = _clip_bias(gate, position_bias, padding_bias, i, scratch)[None]
            out[i] = F.scaled_dot_product_attention(q[i : i + 1], k[i : i + 1], v[i : i + 1], attn_mask=bias)[0]
        ctx.save_for_backward(q, k, v, gate, position_bias, padding_bias, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, gate, position_bias, padding_bias, out = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        # Batched products would copy strided factors again and again.
        q, k, v, grad = (q * scale).contiguous(), (k * scale).contiguous(), v.contiguous(), grad.contiguous()
        dq, dk, dv, dgate = (torch.empty_like(t) for t in (q, k, v, gate))
        dposition = torch.zeros_like(position_bias) if ctx.needs_input_grad[4] else None
        inner = (grad * out).sum(-1, keepdim=True)
        logits, weights, dlogits = (torch.empty_like(position_bias) for _ in range(3))
        for i in range(len(q)):
            _clip_bias(gate, position_bias, padding_bias, i, logits).baddbmm_(q[i], k[i].mT, alpha=1 / scale)
            torch.softmax(logits, -1, out=weights)
            torch.bmm(weights.mT, grad[i], out=dv[i])
            # Gradient of the softmax: w · (dw − Σ w·dw), the sum being that of grad · out.
            torch.bmm(grad[i], v[i].mT, out=dlogits).sub_(inner[i]).mul_(weights)
            torch.bmm(dlogits, k[i], out=dq[i])
            torch.bmm(dlogits.mT, q[i], out=dk[i])
            torch.sum(torch.mul(dlogits, position_bias, out=weights), -1, keepdim=True, out=dgate[i])
            if dposition is not None:
                dposition.addcmul_(dlogits, gate[i])
        return dq, dk, dv, dgate, dposition, None


def _clip_bias(gate: Tensor, position_bias: Tensor, padding_bias: Tensor | None, i: int, out: Tensor) -> Tensor:
    """What is added to the logits of clip `i`, written into `out` (H, P, P)."""
    bias = torch.mul(gate[i], position_bias, out=out)
    return bias if padding_bias is None else bias.add_(padding_bias[i])


class GatedAttention(nn.Module):
    """Multi-head self-attention with gated relative position bias."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)
        self.grep_linear = nn.Linear(dim // heads, _GATE_UNITS)
        self.grep_a = nn.Parameter(torch.ones(1, heads, 1, 1))

    def forward(self, x: Tensor, position_bias: Tensor, padding_bias: Tensor | None) -> Tensor:
        """(B, P, D) → (B, P, D); `position_bias` is (H, P, P), `padding_bias` (B, 1, 1, P) or None."""
        q, k, v = (self._split(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        dropout = self.dropout if self.training else 0.0
        heads = gated_attention(q, k, v, self._gate(q), position_bias, padding_bias, dropout)
        out: Tensor = self.out_proj(heads.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def _gate(self, q: Tensor) -> Tensor:
        """(B, H, P, d) unscaled queries → (B, H, P, 1) factors of the position bias."""
        sums = self.grep_linear(q).view(*q.shape[:-1], 2, _GATE_UNITS // 2).sum(-1)
        a, b = sums.sigmoid().split(1, dim=-1)
        factor: Tensor = a * (b * self.grep_a - 1.0) + 2.0
        return factor
