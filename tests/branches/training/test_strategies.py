import pytest
import torch

from branches.beats import load_beats
from branches.spec import FrozenSpec, FullSpec, HeadSpec, LoraSpec, PartialSpec
from branches.training.strategies import prepare


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def prepared(strategy):
    model = load_beats("tiny")
    return model, prepare(model, strategy)


@pytest.mark.parametrize("strategy", [FrozenSpec(), HeadSpec(), PartialSpec(layers=0)], ids=lambda s: s.name)
def test_the_backbone_is_left_alone(strategy):
    model, groups = prepared(strategy)
    assert not trainable(model)
    assert not groups


def test_partial_trains_the_top_layers_only():
    model, _ = prepared(PartialSpec(layers=1))
    assert trainable(model) == {n for n, _ in model.named_parameters() if n.startswith("encoder.layers.1.")}
    model, _ = prepared(PartialSpec(layers=9))
    assert trainable(model) == {n for n, _ in model.named_parameters() if n.startswith("encoder.layers.")}


def test_full_trains_everything_once_and_lower_layers_more_slowly():
    model, groups = prepared(FullSpec(layer_decay=0.5))
    assert trainable(model) == {n for n, _ in model.named_parameters()}
    factors = {id(p): group.factor for group in groups for p in group.params}
    assert sum(len(group.params) for group in groups) == len(factors) == len(list(model.parameters()))
    expected = {"encoder.layers.1.": 1.0, "encoder.layers.0.": 0.5, "patch_embedding.": 0.25, "encoder.pos_conv": 0.25}
    for name, parameter in model.named_parameters():
        for prefix, factor in expected.items():
            if name.startswith(prefix):
                assert factors[id(parameter)] == factor


def test_lora_trains_its_adapters_only():
    model, groups = prepared(LoraSpec(rank=4, targets=("q_proj", "fc2")))
    names = {f"encoder.layers.{n}.{m}.lora_{ab}" for n in (0, 1) for m in ("self_attn.q_proj", "fc2") for ab in "ab"}
    assert trainable(model) == names
    assert sum(p.numel() for g in groups for p in g.params) == 2 * (4 * (64 + 64) + 4 * (128 + 64))
    waveforms = torch.randn(2, 8000) * 0.1
    torch.testing.assert_close(model(waveforms)[0], load_beats("tiny")(waveforms)[0])
