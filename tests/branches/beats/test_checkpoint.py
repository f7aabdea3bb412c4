import argparse
import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from branches.beats import checkpoint as checkpoint_module
from branches.beats import load_beats, save_beats
from branches.beats.lora import add_lora, merge_lora
from branches.spec import LoraSpec
from scoring.errors import InputError

FIXTURES = Path(__file__).parents[1] / "fixtures"
RELEASED = FIXTURES / "pretrained.pt"
WAVEFORMS = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0)) * 0.1
TABLE = "encoder.layers.1.self_attn.relative_attention_bias.weight"


@pytest.fixture
def changed(tmp_path):
    """Writes the released checkpoint after a change."""

    def write(change):
        content = torch.load(RELEASED, weights_only=True)
        change(content)
        torch.save(content, tmp_path / "changed.pt")
        return tmp_path / "changed.pt"

    return write


@pytest.mark.parametrize("name", ["pretrained", "finetuned", "prenorm"])
def test_saved_models_load_again_and_keep_the_released_format(name, tmp_path):
    original, state = torch.load(FIXTURES / f"{name}.pt", weights_only=True), torch.get_rng_state()
    model = load_beats(FIXTURES / f"{name}.pt")
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    save_beats(model, tmp_path / "saved.pt")
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    assert saved["model"].keys() == original["model"].keys()
    assert all(torch.equal(saved["model"][k], v) for k, v in original["model"].items())
    assert saved["cfg"].items() <= original["cfg"].items()
    assert load_beats(tmp_path / "saved.pt").config == model.config


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError("disk full")

    (tmp_path / "model.pt").write_bytes(b"old")
    monkeypatch.setattr(checkpoint_module.torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_beats(load_beats("tiny"), tmp_path / "model.pt")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"model.pt": b"old"}


def test_tiny_is_always_the_same():
    state, tiny = torch.get_rng_state(), load_beats("tiny")
    assert torch.equal(torch.get_rng_state(), state)
    assert not tiny.training
    expected = torch.tensor([0.1879, -2.8861, 1.6904, -1.4441])
    torch.testing.assert_close(tiny(WAVEFORMS)[0][0, 5, :4], expected, atol=2e-3, rtol=0)


def test_adapters_are_merged_and_saved_as_a_part_of_the_weights(tmp_path):
    torch.manual_seed(0)
    model = load_beats("tiny")
    targets = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    with torch.no_grad():
        for parameter in add_lora(model, LoraSpec(rank=4, alpha=8.0, targets=targets)):
            parameter.normal_(0, 0.1)
    before, layer = model(WAVEFORMS)[0], model.layers[1].fc1
    expected = layer.weight + 8 / 4 * layer.lora_b @ layer.lora_a
    save_beats(model, tmp_path / "adapted.pt")
    assert "encoder.layers.1.fc1.lora_a" in model.state_dict()  # which goes on as it was
    merge_lora(model)
    torch.testing.assert_close(model.layers[1].fc1.weight, expected)
    for merged in (model, load_beats(tmp_path / "adapted.pt")):
        torch.testing.assert_close(merged(WAVEFORMS)[0], before, atol=1e-4, rtol=1e-4)
        assert set(merged.state_dict()) == set(load_beats("tiny").state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model"].pop("encoder.layers.0.fc1.weight"), r"missing key encoder\.layers\.0\.fc1\.weight$"),
        (lambda c: c["model"].pop(TABLE), f"missing key {TABLE}$"),
        (lambda c: c["model"].update({TABLE: torch.ones(32, 4)}), f"{TABLE} differs from .* one table for all layers"),
        (lambda c: c["model"].update(extra=torch.ones(1), more=torch.ones(1)), r"unexpected key extra \(and 1 more\)$"),
        (lambda c: c["model"].update({"module.extra": torch.ones(1)}), r"unexpected key module\.extra$"),
        (lambda c: c["model"].update({"layer_norm.bias": torch.ones(3)}), r"bias has shape \(3,\), must be \(32,\)$"),
        (lambda c: c["model"].update({"layer_norm.bias": 1.0}), r'it must hold "cfg" and "model" \(a state dict\)$'),
        (lambda c: c.pop("cfg"), r'it must hold "cfg" and "model" \(a state dict\)$'),
        (lambda c: c["cfg"].pop("encoder_layers"), r"cfg has no encoder_layers; is this a BEATs checkpoint\?$"),
        (lambda c: c["cfg"].update(encoder_layers="3"), r"encoder_layers is '3': Input should be a valid integer$"),
        (lambda c: c["cfg"].update(dropout=1.5), r"dropout is 1\.5: Input should be less than 1$"),
        (lambda c: c["cfg"].update(conv_pos_groups=7), "encoder_embed_dim is not a multiple of conv_pos_groups$"),
        (lambda c: c["cfg"].update(encoder_attention_heads=5), "is not a multiple of encoder_attention_heads$"),
        (lambda c: c["cfg"].update(input_patch_size=24), "input_patch_size 24 does not divide 128 mel bins$"),
        (lambda c: c["cfg"].pop("gru_rel_pos"), "gru_rel_pos is False: Input should be True$"),
        (lambda c: c["cfg"].pop("relative_position_embedding"), "relative_position_embedding is False: "),
        (lambda c: c.update(when=datetime.date(2026, 1, 1)), "it holds datetime.date; save tensors, numbers and text"),
    ],
)
def test_what_is_wrong_is_named_with_the_file(changed, change, message):
    path = changed(change)
    with pytest.raises(InputError, match=rf"^{path}[^\n]*{message}"):
        load_beats(path)


def numpy_and_namespace(content):
    cfg = {**content["cfg"], "dropout": np.float64(0.0), "encoder_layers": np.int64(content["cfg"]["encoder_layers"])}
    content.update(cfg=argparse.Namespace(**cfg), epoch=np.float32(3))


def in_half_precision(content):
    content["model"] = {key: value.half() for key, value in content["model"].items()}


def wrapped(content):
    content["model"] = {f"module._orig_mod.{key}": value for key, value in content["model"].items()}


def parametrised(content):
    for kind, number in (("g", 0), ("v", 1)):
        value = content["model"].pop(f"encoder.pos_conv.0.weight_{kind}")
        content["model"][f"encoder.pos_conv.0.parametrizations.weight.original{number}"] = value


@pytest.mark.parametrize("change", [numpy_and_namespace, in_half_precision, wrapped, parametrised])
def test_what_training_scripts_make_of_a_checkpoint_is_undone(changed, change):
    expected, loaded = load_beats(RELEASED).state_dict(), load_beats(changed(change)).state_dict()
    torch.testing.assert_close(dict(loaded), dict(expected), atol=1e-3 * (change is in_half_precision), rtol=0)


class Intruder:
    def __reduce__(self):
        return print, ("executed",)


def test_nothing_in_a_file_is_executed(changed, capsys):
    with pytest.raises(InputError, match=r"changed\.pt is not a BEATs checkpoint: it holds .*print; save"):
        load_beats(changed(lambda c: c.update(cfg=Intruder())))
    assert "executed" not in capsys.readouterr().out


@settings(max_examples=40, deadline=None)
@given(kept=st.floats(0, 0.99), behind=st.binary(max_size=100))
def test_what_is_no_checkpoint_is_named_in_one_line(tmp_path_factory, kept, behind):
    content, path = RELEASED.read_bytes(), tmp_path_factory.getbasetemp() / "file.pt"
    path.write_bytes(content[: int(kept * len(content))] + behind)
    with pytest.raises(InputError, match=rf"^{path} is not a BEATs checkpoint: (not|it) [^\n]+$"):
        load_beats(path)
