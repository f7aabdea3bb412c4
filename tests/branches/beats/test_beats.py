"""BEATs is the authors' network, whatever file it comes in; files of OpenBEATs, as its training leaves them."""

import argparse
import datetime
import json
import resource
from functools import cache
from itertools import pairwise
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from branches.beats import BEATs, RandomProjectionTokenizer, load_beats, load_tokenizer, memory, save_beats
from branches.beats.attention import gated_attention
from branches.beats.checkpoint import count_parameters, random_beats
from branches.beats.config import TINY
from branches.beats.lora import add_lora, merge_lora
from branches.beats.memory import TooLong, available_memory, check_attention_memory
from branches.checkpoint_files import file_digest
from branches.frames import n_frames
from branches.frontend import FBANK_MEAN, FBANK_STD, fbank, frame_padding
from branches.spec import LoraSpec
from branches.training.batches import Batch
from branches.training.finetuning import FineTuning
from scoring.errors import InputError
from tests.branches.training.test_finetuning import CLASSES, spec_with

FIXTURES = Path(__file__).parents[1] / "fixtures"
MODELS = ["pretrained", "finetuned", "prenorm"]
RELEASED = FIXTURES / "pretrained.pt"
TABLE = "encoder.layers.1.self_attn.relative_attention_bias.weight"


@cache
def released(name: str) -> BEATs:
    return load_beats(FIXTURES / f"{name}.pt")


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.1


@cache
def cases():
    with np.load(FIXTURES / "cases.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_features_and_outputs_are_the_authors(model):
    precision = {"atol": 1e-5 if model == "finetuned" else 1e-4, "rtol": 0}  # probabilities, or features
    for name in ("w2s", "w10s", "w1p37s"):
        torch.testing.assert_close(fbank(cases()[f"input/{name}"]), cases()[f"fbank/{name}"], atol=1e-4, rtol=0)
        x, mask = released(model)(cases()[f"input/{name}"])
        assert mask is None
        torch.testing.assert_close(x, cases()[f"{model}/{name}"], **precision)
    x, mask = released(model)(cases()["input/w2s"], cases()["mask/w2s_valid_samples"])
    assert torch.equal(mask, cases()[f"{model}/w2s_patch_mask"])
    torch.testing.assert_close(x, cases()[f"{model}/w2s_masked"], **precision)


@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_a_clip_is_the_same_alone_and_in_a_batch_and_the_authors_rule_groups_samples_and_then_frames(model):
    beats, lengths, waveforms = released(model), [20_000, 32_000, 9_000, 2_800, 0], noise(5, 32_000)
    features = fbank(waveforms)
    batch, mask = beats.encode(features, frame_padding(torch.tensor(lengths), features.shape[1]))
    for i, length in enumerate(lengths[:-1]):
        alone, _ = beats.encode(fbank(waveforms[i : i + 1, :length]))
        assert alone.shape == (1, n_frames(length) // 16 * 8, beats.embed_dim)
        torch.testing.assert_close(batch[i][~mask[i]], alone[0], atol=1e-4, rtol=0)
    assert batch.isfinite().all()  # of padding alone, too
    assert beats(waveforms, torch.tensor(lengths))[0].isfinite().all()
    lengths = torch.tensor([0, 331, 332, 333, 3_320, 7_967, 8_000])
    _, mask = beats(noise(7, 8_000), lengths)
    frames = (torch.arange(48 * 166) >= lengths[:, None]).view(7, 48, 166).all(-1)  # 32 samples are left over
    assert torch.equal(mask, frames.view(7, 24, 2).all(-1))


@pytest.mark.parametrize("model", ["pretrained", "prenorm"])
@torch.no_grad()
def test_layers_can_be_chosen(model):
    beats, features = released(model), fbank(noise(2, 8000))
    each = [beats.encode(features, layers=[n])[0] for n in range(4)]
    assert not any(torch.allclose(one, other, atol=1e-2) for one, other in pairwise(each))
    for layers in ([-1], [1, 3], [2, -4]):
        expected = torch.cat([each[n] for n in layers], -1)
        torch.testing.assert_close(beats.encode(features, layers=layers)[0], expected)
    for wrong in ([4], [-5], []):
        with pytest.raises(InputError, match=r"layers \[.*\]: this BEATs has outputs 0 to 3 \(or −1 to −4\)"):
            beats.encode(features, layers=wrong)


def test_wrong_shapes_lengths_and_tokenizers_are_named():
    for wrong, message in (
        (lambda tiny: tiny(noise(1, 2799)), r"features are \(1, 15, 128\).* at least 2800 samples"),
        (lambda tiny: tiny.encode(noise(2, 48, 64)), r"features are \(2, 48, 64\), must be \(batch, frames ≥ 16, 128"),
        (lambda tiny: tiny.encode(noise(2, 48, 128), torch.zeros(2, 3) > 0), r"padding is \(2, 3\), must be \(2, 48\)"),
        (lambda tiny: tiny(noise(2, 8000), torch.tensor([8000])), r"valid_samples is \(1,\), must be \(2,\)"),
        (lambda tiny: tiny.encode(torch.zeros(1, 360_000, 128)), "^3600 s are too long .* needs .* free; cut it into"),
        (lambda _: load_tokenizer("random:"), "tokenizer random:: write random:SEED with a whole number"),
        (lambda _: load_tokenizer("random:-1"), "random:SEED"),
        (lambda _: load_tokenizer(FIXTURES / "prenorm.pt"), "prenorm.pt: cfg has no quant_n and quant_dim; is this"),
        (lambda _: load_tokenizer("random:1").labels(noise(1, 2799)), r"features are \(1, 15, 128\), must be \(batch"),
    ):
        with pytest.raises(InputError, match=message):
            wrong(load_beats("tiny"))


def test_all_pairs_of_patches_must_fit_into_what_container_and_process_leave(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    of_the_machine, needed, limit = available_memory(), 2 * 12 * (8 * 100) ** 2 * 4, tmp_path / "memory.max"
    (tmp_path / "memory.current").write_text("500000")
    (tmp_path / "memory.stat").write_text("anon 7\ninactive_file 20000\n")
    limit.write_text(f"{needed + 480_000}")
    check_attention_memory(12, 1_600)
    limit.write_text(f"{needed + 479_999}")
    with pytest.raises(TooLong, match=r"^16 s are too long .* needs 0.0614 GB, and 0.0614 GB are free"):
        check_attention_memory(12, 1_600)
    limit.write_text("max")
    assert available_memory() == pytest.approx(of_the_machine, rel=0.5)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1, -1))
    assert available_memory() == 0


@pytest.mark.parametrize("what", [name for name in type(TINY).model_fields if "drop" in name])
@torch.no_grad()
def test_each_dropout_acts_in_training_only(what):
    torch.manual_seed(0)
    config = TINY.model_copy(update={"finetuned_model": True, "predictor_dropout": 0.0})
    model, plain = random_beats(config.model_copy(update={what: 0.5}), seed=0), random_beats(config, seed=0)
    torch.testing.assert_close(model(noise(1, 8000)), plain.train()(noise(1, 8000)))
    assert len({model.train()(noise(1, 8000))[0].sum().item() for _ in range(8)}) > 1


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 1e-9], ids=["clip by clip", "all at once"])
def test_attention_and_its_gradients_are_those_of_the_formula(dropout, padded):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 5, 4)] * 3 + [(2, 3, 5, 1), (3, 5, 5)]
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]
    padding = torch.zeros(2, 1, 1, 5, dtype=torch.float64)
    padding[1, ..., 3:] = torch.finfo(torch.float64).min * padded
    q, k, v, gate, position_bias = inputs
    expected = (q @ k.mT / 4**0.5 + gate * position_bias + padding).softmax(-1) @ v
    ours = gated_attention(*inputs, padding if padded else None, dropout)
    torch.testing.assert_close(ours, expected)
    weight = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    gradients = torch.autograd.grad(expected, inputs, weight)
    torch.testing.assert_close(torch.autograd.grad(ours, inputs, weight), gradients)


def test_a_released_tokenizers_labels_are_the_authors_and_random_ones_follow_seed_and_formula():
    tokenizer, computed = load_tokenizer(FIXTURES / "tokenizer.pt"), []
    for name in ("w2s", "w10s", "w1p37s"):
        waveforms, expected = cases()[f"input/{name}"], cases()[f"tokenizer/{name}"]
        labels = tokenizer.eval().labels(waveforms)
        assert (tokenizer.n_codes, labels.dtype, labels.requires_grad) == (64, torch.int64, False)
        assert torch.equal(labels, expected.view(len(waveforms), -1))
        assert torch.equal(tokenizer.train().labels(waveforms), labels)  # without dropout
    for layer in (tokenizer.backbone.layers[0].fc1, tokenizer.quantize_layer):
        layer.register_forward_hook(lambda *a: computed.append(a[-1].dtype))
    for one, alike in ((tokenizer, 0.8), (load_tokenizer("random:0"), 0.999)):
        exact = one.labels(noise(4, 16_000))
        with torch.autocast("cpu", torch.bfloat16):
            assert (one.labels(noise(4, 16_000)) == exact).float().mean() > alike
    assert computed == [torch.float32, torch.float32, torch.bfloat16, torch.float32]
    state, tiny, labels = torch.get_rng_state(), load_beats("tiny"), load_tokenizer("random:3").labels(noise(2, 8000))
    assert torch.equal(torch.get_rng_state(), state)
    assert not tiny.training
    assert tiny(noise(2, 8000))[0][0, 5, :4].tolist() == pytest.approx([0.1879, -2.8861, 1.6904, -1.4441], abs=2e-3)
    assert labels.shape == (2, 24)
    assert labels[0, :6].tolist() == [864, 286, 968, 829, 954, 956]  # today and always
    tokenizer, features = RandomProjectionTokenizer(0, n_codes=32, dim=8), fbank(noise(1, 8000))
    labels = tokenizer.patch_labels(features)
    patch = features[0, 16:32, 48:64].reshape(-1)  # patch 11 is the second step in time, fourth band
    patch = (patch - patch.mean()) / patch.std(correction=0)
    assert labels[0, 11] == F.cosine_similarity((patch @ tokenizer.projection)[None], tokenizer.codes).argmax()
    assert torch.equal(tokenizer.patch_labels(features + 1.5), labels)  # of a patch's shape, not of its level


@pytest.mark.parametrize("name", MODELS)
def test_saved_models_keep_the_released_format_and_a_failed_save_leaves_the_old_file(name, tmp_path, monkeypatch):
    original, state = torch.load(FIXTURES / f"{name}.pt", weights_only=True), torch.get_rng_state()
    model, path = load_beats(FIXTURES / f"{name}.pt"), tmp_path / "saved.pt"
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    save_beats(model, path)
    saved = torch.load(path, weights_only=True)
    assert saved["model"].keys() == original["model"].keys()
    assert all(torch.equal(saved["model"][k], v) for k, v in original["model"].items())
    assert saved["cfg"].items() - {"fbank_mean": 15.41663, "fbank_std": 6.55582}.items() <= original["cfg"].items()
    assert load_beats(path).config == model.config
    content = path.read_bytes()
    monkeypatch.setattr(torch, "save", Mock(side_effect=OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_beats(load_beats("tiny"), path)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == {path: content}


def test_adapters_are_merged_and_saved_as_a_part_of_the_weights(tmp_path):
    torch.manual_seed(0)
    model, waveforms = load_beats("tiny"), noise(2, 8000)
    targets = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    with torch.no_grad():
        for parameter in add_lora(model, LoraSpec(rank=4, alpha=8.0, targets=targets)):
            parameter.normal_(0, 0.1)
    before, layer = model(waveforms)[0], model.layers[1].fc1
    expected = layer.weight + 8 / 4 * layer.lora_b @ layer.lora_a
    save_beats(model, tmp_path / "adapted.pt")
    assert "encoder.layers.1.fc1.lora_a" in model.state_dict()  # which goes on as it was
    merge_lora(model)
    torch.testing.assert_close(model.layers[1].fc1.weight, expected)
    for merged in (model, load_beats(tmp_path / "adapted.pt")):
        torch.testing.assert_close(merged(waveforms)[0], before, atol=1e-4, rtol=1e-4)
        assert set(merged.state_dict()) == set(load_beats("tiny").state_dict())


def changed(change, folder):
    content = torch.load(RELEASED, weights_only=True)
    change(content)
    torch.save(content, folder / "changed.pt")
    return folder / "changed.pt"


def test_what_training_scripts_make_of_a_checkpoint_is_undone(tmp_path):
    def as_scripts_save_it(content):
        numbers = {"dropout": np.float64(0.0), "encoder_layers": np.int64(content["cfg"]["encoder_layers"])}
        content.update(cfg=argparse.Namespace(**content["cfg"] | numbers), epoch=np.float32(3))
        convolution = "encoder.pos_conv.0."
        names = {f"{convolution}weight_{'gv'[i]}": f"{convolution}parametrizations.weight.original{i}" for i in (0, 1)}
        content["model"] = {f"module._orig_mod.{names.get(k, k)}": v.half() for k, v in content["model"].items()}

    loaded, expected = load_beats(changed(as_scripts_save_it, tmp_path)).state_dict(), load_beats(RELEASED).state_dict()
    torch.testing.assert_close(dict(loaded), dict(expected), atol=1e-3, rtol=0)


MEAN, STD = 11.5, 4.0


def checkpoint(folder, form, model="pretrained", **more):
    """A file of a form with keys beside the network, and the table of relative positions in the first layer alone."""
    content = torch.load(FIXTURES / f"{model}.pt", weights_only=True)
    cfg = content["cfg"] | {"decoder_layers": 1} | ({"fbank_mean": MEAN, "fbank_std": STD} if "norm" in form else {})
    state = {key: value.clone() for key, value in content["model"].items() if ".1.self_attn.relative" not in key}
    state |= {"patch_embedding_pad.weight": torch.ones(1, 1, 16, 16), "raw2fbank_pad.weight": torch.ones(1, 1, 400)}
    state = {("encoder." if "nested" in form else "") + key: value for key, value in (state | more).items()}
    state |= {"predictor.mask_token": torch.ones(1), "decoder.layers.0.fc1.weight": torch.ones(2, 2)}
    if "safetensors" in form:
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"beats_config": cfg} if model == "prenorm" else cfg))
        return folder / "model.safetensors"
    torch.save({"cfg": cfg, "model": state, "token_list": ["0"]}, folder / "epoch_latest.pt")
    return folder / "epoch_latest.pt"


@pytest.mark.parametrize("form", ["flat", "nested", "own norm", "nested, own norm, safetensors"])
@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_each_form_holds_the_same_network_and_its_own_normalisation_which_is_saved_with_it(form, model, tmp_path):
    path, features = checkpoint(tmp_path, form, model), fbank(noise(2, 16_000))
    normalised = (features * 2 * FBANK_STD + FBANK_MEAN - MEAN) / (2 * STD) if "norm" in form else features
    expected = released(model).encode(normalised)[0]
    assert ("norm" in form) == bool((expected - released(model).encode(features)[0]).abs().max() > 1e-4)
    save_beats(load_beats(path), tmp_path / "saved.pt")
    for file in (path, tmp_path / "saved.pt"):
        torch.testing.assert_close(load_beats(file).encode(features)[0], expected, atol=1e-4, rtol=0)
        assert count_parameters(file) == sum(p.numel() for p in released(model).parameters())


def test_what_is_masked_in_training_is_at_the_mean_of_the_checkpoints_normalisation(tmp_path):
    backbone = {"path": str(checkpoint(tmp_path, "own norm"))}
    masks, seen = {"time_mask": 40, "frequency_mask": 100}, []
    for settings in ({"augmentation": masks}, {"augmentation": {}, "masked_prediction": {}}):
        parts = FineTuning(spec_with(backbone=backbone, strategy="lora", **settings), CLASSES)
        parts.model.beats.patch_embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        parts(Batch([*noise(8, 8_000).numpy()], np.arange(8) % 3))
        assert 0.1 < (seen.pop().abs() < 1e-5).float().mean() < 0.95


def test_what_is_wrong_with_a_file_is_named(tmp_path):
    for form, extra in (("flat", "encoder.extra"), ("nested", "layer_weights")):
        path = checkpoint(tmp_path, form, **{extra: torch.ones(1)})
        with pytest.raises(InputError, match=rf"^{path}[^\n]*unexpected key {extra}$"):
            load_beats(path)
    path, config = checkpoint(tmp_path, "safetensors"), tmp_path / "config.json"
    digest = file_digest(path)  # of both
    for damaged, content, message in (
        (config, b"{", "config.json is not JSON"),
        (path, path.read_bytes()[:999], "not a file of safetensors"),
        (config, None, "tensors alone, and .*config.json, which describes the network, is not there"),
    ):
        damaged.write_bytes(content) if content else damaged.unlink()
        assert file_digest(path) != digest
        with pytest.raises(InputError, match=rf"^{path} is not a BEATs checkpoint: [^\n]*{message}"):
            load_beats(path)
        path = checkpoint(tmp_path, "safetensors")
    file, content, one = tmp_path / "file.pt", RELEASED.read_bytes(), torch.ones(1)
    for damaged in (b"", b"hello", content[:99], content[:-99], content[:5000] + bytes(99)):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"^{file} is not a BEATs checkpoint: (not|it) [^\n]+$"):
            load_beats(file)
    for change, message in (
        (lambda c: c["model"].pop("encoder.layers.0.fc1.weight"), r"missing key encoder\.layers\.0\.fc1\.weight$"),
        (lambda c: c["model"].pop(TABLE.replace("1", "0")), r"missing key encoder\.layers\.0\.self_attn\.relative\S*$"),
        (lambda c: c["model"].update({TABLE: torch.ones(32, 4)}), f"{TABLE} differs from .* one table for all layers"),
        (lambda c: c["model"].update(extra=one, more=one), r"unexpected key extra \(and 1 more\)$"),
        (lambda c: c["model"].update({"module.extra": one}), r"unexpected key module\.extra$"),
        (lambda c: c["model"].update({"layer_norm.bias": torch.ones(3)}), r"bias has shape \(3,\), must be \(32,\)$"),
        (lambda c: c["model"].update({"layer_norm.bias": 1.0}), r'it must hold "cfg" and "model" \(a state dict\)$'),
        (lambda c: c["model"].update({"predictor.mask_token": one}), "unexpected key predictor.mask_token$"),
        (lambda c: c["cfg"].update(fbank_std=0.0), r"fbank_std is 0\.0: Input should be greater"),
        (lambda c: c.pop("cfg") and c.update(c.pop("model")), "it holds tensors alone, .* OpenBEATs-Base-i3"),
        (lambda c: c.pop("cfg"), r'it must hold "cfg" and "model" \(a state dict\)$'),
        (lambda c: c["cfg"].pop("encoder_layers"), r"cfg has no encoder_layers; is this a BEATs checkpoint\?$"),
        (lambda c: c["cfg"].update(encoder_layers="3"), r"encoder_layers is '3': Input should be a valid integer$"),
        (lambda c: c["cfg"].update(dropout=1.5), r"dropout is 1\.5: Input should be less than 1$"),
        (lambda c: c["cfg"].update(conv_pos_groups=7), "encoder_embed_dim is not a multiple of conv_pos_groups$"),
        (lambda c: c["cfg"].update(encoder_attention_heads=5), "is not a multiple of encoder_attention_heads$"),
        (lambda c: c["cfg"].update(input_patch_size=24), "input_patch_size 24 does not divide 128 mel bins$"),
        (lambda c: c["cfg"].pop("gru_rel_pos"), "gru_rel_pos is False: Input should be True$"),
        (lambda c: c["cfg"].pop("relative_position_embedding"), "relative_position_embedding is False: "),
        (lambda c: c.update(when=datetime.date(2026, 1, 1)), "holds datetime.date; save tensors, numbers and text"),
    ):
        path = changed(change, tmp_path)
        with pytest.raises(InputError, match=rf"^{path}[^\n]*{message}"):
            load_beats(path)
