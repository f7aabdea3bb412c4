import pytest
import torch

from branches.beats import load_beats
from branches.spec import FrozenSpec, FullSpec, HeadSpec, LoraSpec, PartialSpec
from branches.training.strategies import prepare

ALL = {name for name, _ in load_beats("tiny").named_parameters()}
LORA = LoraSpec(rank=4, targets=("q_proj", "fc2"))


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (FrozenSpec(), set()),
        (HeadSpec(), set()),
        (PartialSpec(layers=0), set()),
        (PartialSpec(layers=1), {name for name in ALL if name.startswith("encoder.layers.1.")}),
        (PartialSpec(layers=9), {name for name in ALL if name.startswith("encoder.layers.")}),
        (FullSpec(), ALL),
        (LORA, {f"encoder.layers.{n}.{m}.lora_{x}" for n in (0, 1) for m in ("self_attn.q_proj", "fc2") for x in "ab"}),
    ],
    ids=str,
)
def test_what_is_trained_is_trained_once_and_begins_as_it_was(strategy, expected):
    model = load_beats("tiny")
    trained = [id(p) for group in prepare(model, strategy) for p in group.params]
    assert {name for name, p in model.named_parameters() if p.requires_grad} == expected
    assert sorted(trained) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    waveforms = torch.randn(2, 8000) * 0.1
    torch.testing.assert_close(model(waveforms)[0], load_beats("tiny")(waveforms)[0])


def test_lower_layers_learn_more_slowly():
    model = load_beats("tiny")
    factors = {id(p): group.factor for group in prepare(model, FullSpec(layer_decay=0.5)) for p in group.params}
    expected = {"encoder.layers.1.": 1.0, "encoder.layers.0.": 0.5}  # what lies before the layers, at 0.25
    for name, parameter in model.named_parameters():
        assert factors[id(parameter)] == expected.get(name[: len("encoder.layers.n.")], 0.25)
