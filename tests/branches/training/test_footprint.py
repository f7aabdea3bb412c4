"""The memory model against the tensors that autograd keeps, of the operations that run on a GPU."""

import pytest
import torch

from branches.beats import BEATsConfig, attention
from branches.beats.checkpoint import random_beats
from branches.model import BranchModel
from branches.spec import BranchSpec
from branches.training.footprint import footprint, layer_bytes
from branches.training.strategies import prepare

CONFIG = BEATsConfig(
    input_patch_size=16,
    embed_dim=64,
    encoder_layers=2,
    encoder_embed_dim=192,
    encoder_ffn_embed_dim=768,
    encoder_attention_heads=6,
    conv_pos=16,
    conv_pos_groups=4,
    num_buckets=32,
    max_distance=100,
    deep_norm=True,
    dropout=0.0,
    attention_dropout=0.0,
)
PATCHES = 496


class Attention(torch.autograd.Function):
    """Keeps what the GPU's kernel keeps; the CPU's keeps the weights."""

    @staticmethod
    def forward(ctx, q, k, v, bias):
        out = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        ctx.save_for_backward(q, k, v, bias, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        raise NotImplementedError


def kept(strategy, layers, batch):
    """Bytes that autograd keeps of a forward pass, without the parameters."""
    torch.manual_seed(0)
    model = random_beats(CONFIG.model_copy(update={"encoder_layers": layers}), seed=0).train()
    prepare(model, strategy)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages, tensors = {}, []

    def keep(tensor):
        tensors.append(tensor)  # or its memory would be used, and counted, again
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        model.encode(torch.randn(batch, 998, 128))
    return sum(size for pointer, size in storages.items() if pointer not in parameters)


@pytest.mark.parametrize(
    "strategy",
    [
        "full",
        {"name": "lora", "rank": 16},
        {"name": "lora", "rank": 16, "targets": ["q_proj", "k_proj", "v_proj", "fc1", "fc2"]},
    ],
    ids=str,
)
def test_what_a_layer_keeps_of_a_clip(strategy, monkeypatch):
    monkeypatch.setattr(
        attention.F,
        "scaled_dot_product_attention",
        lambda q, k, v, attn_mask, dropout_p: Attention.apply(q, k, v, attn_mask),
    )
    strategy = BranchSpec.model_validate({"strategy": strategy}).strategy
    sizes = {(layers, batch): kept(strategy, layers, batch) for layers in (1, 2) for batch in (1, 2)}
    of_layer = sizes[2, 2] - sizes[2, 1] - (sizes[1, 2] - sizes[1, 1])
    assert layer_bytes(CONFIG, strategy, PATCHES) == pytest.approx(of_layer, rel=0.05)


def spec(**settings):
    return BranchSpec.model_validate({"embedding_dim": 8, **settings})


def test_what_is_not_trained_costs_its_weights_alone():
    sizes = {s: footprint(BranchModel(spec(strategy=s)), 998) for s in ("head", "full")}
    full = BranchModel(spec())
    weights = 4 * sum(p.numel() for p in full.parameters())
    assert sizes["full"].state == 4 * weights
    assert sizes["head"].state < 1.2 * weights
    averaged = footprint(BranchModel(spec(training={"average": 0.9})), 998)
    assert averaged.state == 5 * weights
    assert sizes["head"].activations < 0.1 * sizes["full"].activations


def test_memory_grows_with_the_batch_and_less_so_when_layers_are_computed_again():
    small, large = (footprint(BranchModel(spec(training={"batch_size": n})), 998) for n in (8, 32))
    again = footprint(BranchModel(spec(training={"batch_size": 32})), 998, recompute=True)
    assert 3.5 < large.activations / small.activations < 4
    assert again.activations < 0.1 * large.activations
    assert again.total < large.total
