import resource
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from branches.beats import BEATs, load_beats, memory
from branches.beats.attention import distance_buckets, gated_attention
from branches.beats.checkpoint import random_beats
from branches.beats.config import TINY
from branches.beats.memory import TooLong, available_memory, check_attention_memory
from branches.frames import n_frames
from branches.frontend import fbank, frame_padding
from scoring.errors import InputError

FIXTURES = Path(__file__).parents[1] / "fixtures"
MODELS = ["pretrained", "finetuned", "prenorm"]


@cache
def released(name: str) -> BEATs:
    return load_beats(FIXTURES / f"{name}.pt")


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.1


@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_released_numbers(model):
    with np.load(FIXTURES / "cases.npz") as arrays:
        cases = {name: torch.from_numpy(arrays[name]) for name in arrays}
    precision = {"atol": 1e-5 if model == "finetuned" else 1e-4, "rtol": 0}  # probabilities, or features
    for name in ("w2s", "w10s", "w1p37s"):
        torch.testing.assert_close(fbank(cases[f"input/{name}"]), cases[f"fbank/{name}"], atol=1e-4, rtol=0)
        x, mask = released(model)(cases[f"input/{name}"])
        assert mask is None
        torch.testing.assert_close(x, cases[f"{model}/{name}"], **precision)
    x, mask = released(model)(cases["input/w2s"], cases["mask/w2s_valid_samples"])
    assert torch.equal(mask, cases[f"{model}/w2s_patch_mask"])
    torch.testing.assert_close(x, cases[f"{model}/w2s_masked"], **precision)


@torch.no_grad()
def test_the_authors_rule_groups_samples_and_then_frames():
    lengths = torch.tensor([0, 331, 332, 333, 3_320, 7_967, 8_000])
    _, mask = load_beats("tiny")(noise(7, 8_000), lengths)
    frames = (torch.arange(48 * 166) >= lengths[:, None]).view(7, 48, 166).all(-1)  # 32 samples are left over
    assert torch.equal(mask, frames.view(7, 24, 2).all(-1))


@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_a_clip_is_the_same_alone_and_in_a_batch(model):
    beats, lengths, waveforms = released(model), [20_000, 32_000, 9_000, 2_800, 0], noise(5, 32_000)
    features = fbank(waveforms)
    batch, mask = beats.encode(features, frame_padding(torch.tensor(lengths), features.shape[1]))
    for i, length in enumerate(lengths[:-1]):
        alone, _ = beats.encode(fbank(waveforms[i : i + 1, :length]))
        assert alone.shape == (1, n_frames(length) // 16 * 8, beats.embed_dim)
        torch.testing.assert_close(batch[i][~mask[i]], alone[0], atol=1e-4, rtol=0)
    assert batch.isfinite().all()  # of padding alone, too
    assert beats(waveforms, torch.tensor(lengths))[0].isfinite().all()


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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda tiny: tiny(noise(1, 2799)), r"features are \(1, 15, 128\).* at least 2800 samples"),
        (lambda tiny: tiny.encode(noise(2, 48, 64)), r"features are \(2, 48, 64\), must be \(batch, frames ≥ 16, 128"),
        (lambda tiny: tiny.encode(noise(2, 48, 128), torch.zeros(2, 3) > 0), r"padding is \(2, 3\), must be \(2, 48\)"),
        (lambda tiny: tiny(noise(2, 8000), torch.tensor([8000])), r"valid_samples is \(1,\), must be \(2,\)"),
        (
            lambda tiny: tiny.encode(torch.zeros(1, 360_000, 128)),  # before its memory is taken
            r"^3600 s are too long .* needs .* GB are free; cut it into clips, or score it",
        ),
    ],
)
def test_wrong_shapes_and_lengths_are_named(wrong, message):
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


def test_bfloat16_is_near_float32_and_gradients_reach_every_parameter():
    tiny, features = load_beats("tiny").train(), fbank(noise(2, 8000))
    padding = frame_padding(torch.tensor([8000, 6000]), features.shape[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x, mask = tiny.encode(features, padding)
    torch.testing.assert_close(x[~mask].float(), tiny.encode(features, padding)[0][~mask], atol=0.1, rtol=0)
    (x.float() * noise(*x.shape)).sum().backward()
    for name, parameter in tiny.named_parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any() or "k_proj.bias" in name, name


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


def test_buckets_of_relative_positions():
    of = dict(zip(range(-100, 101), distance_buckets(101, 32, 64).tolist(), strict=True))
    assert [of[d] for d in (0, -1, -7, 1, 7)] == [0, 1, 7, 17, 23]
    # From 8 on logarithmically: 8 + log(d / 8) / log(64 / 8) · 8.
    assert [of[d] for d in (-8, -11, -16, -32, -63, -64, -100, 16, 100)] == [8, 9, 10, 13, 15, 15, 15, 26, 31]
