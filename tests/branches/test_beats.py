"""The network gives the numbers of the released models, and trains."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from branches.beats import BEATs, load_beats
from branches.beats.attention import distance_buckets, gated_attention
from branches.beats.checkpoint import random_beats
from branches.beats.config import TINY
from branches.frames import n_frames
from branches.frontend import fbank, frame_padding
from scoring.errors import InputError

FIXTURES = Path(__file__).parent / "fixtures"
MODELS = ["pretrained", "finetuned", "prenorm"]


@pytest.fixture(scope="module")
def cases() -> dict[str, Tensor]:
    with np.load(FIXTURES / "cases.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


@pytest.fixture
def tiny() -> BEATs:
    return load_beats("tiny")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.mark.parametrize("name", ["w2s", "w10s", "w1p37s"])
@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_released_numbers(cases, model, name):
    x, mask = load_beats(FIXTURES / f"{model}.pt")(cases[f"input/{name}"], None)
    assert mask is None
    torch.testing.assert_close(x, cases[f"{model}/{name}"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_released_numbers_with_padding(cases, model):
    x, mask = load_beats(FIXTURES / f"{model}.pt")(cases["input/w2s"], cases["mask/w2s_valid_samples"])
    assert torch.equal(mask, cases[f"{model}/w2s_patch_mask"])
    torch.testing.assert_close(x, cases[f"{model}/w2s_masked"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_fine_tuned_model_gives_probabilities_and_features(cases):
    model = load_beats(FIXTURES / "finetuned.pt")
    waveforms = cases["input/w1p37s"]
    torch.testing.assert_close(model(waveforms)[0], cases["finetuned/w1p37s"], atol=1e-5, rtol=0)
    assert model.encode(fbank(waveforms))[0].shape == (2, 64, model.embed_dim)


@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_a_clip_is_the_same_alone_and_in_a_batch(model):
    beats = load_beats(FIXTURES / f"{model}.pt")
    lengths = [20_000, 32_000, 9_000, 2_800]
    waveforms = noise(4, 32_000)
    features = fbank(waveforms)
    batch, mask = beats.encode(features, frame_padding(torch.tensor(lengths), features.shape[1]))
    for i, length in enumerate(lengths):
        alone, _ = beats.encode(fbank(waveforms[i : i + 1, :length]))
        assert (~mask[i]).sum() == alone.shape[1] == n_frames(length) // 16 * 8
        torch.testing.assert_close(batch[i][~mask[i]], alone[0], atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_clip_of_padding_alone_gives_no_nan(tiny):
    for valid in ([0, 8000], [8000, 0]):
        waveforms, lengths = noise(2, 8000), torch.tensor(valid)
        assert tiny(waveforms, lengths)[0].isfinite().all()
        assert tiny.encode(fbank(waveforms), frame_padding(lengths, 48))[0].isfinite().all()


@pytest.mark.parametrize("model", ["pretrained", "prenorm"])
@torch.no_grad()
def test_layers_can_be_chosen(model):
    beats = load_beats(FIXTURES / f"{model}.pt")
    features = fbank(noise(2, 8000))
    last, _ = beats.encode(features)
    each = [beats.encode(features, layers=[n])[0] for n in range(4)]
    torch.testing.assert_close(each[3], last)
    torch.testing.assert_close(beats.encode(features, layers=[-1])[0], last)
    torch.testing.assert_close(beats.encode(features, layers=[1, 3])[0], torch.cat([each[1], each[3]], -1))
    for wrong in ([4], [-5], []):
        with pytest.raises(InputError, match="outputs 0 to 3"):
            beats.encode(features, layers=wrong)


def test_wrong_shapes_are_named(tiny):
    with pytest.raises(InputError, match="2800 samples"):
        tiny(noise(1, 2799))
    with pytest.raises(InputError, match="valid_samples"):
        tiny(noise(2, 8000), torch.tensor([8000]))
    with pytest.raises(InputError, match="padding"):
        tiny.encode(fbank(noise(2, 8000)), torch.zeros(2, 3, dtype=torch.bool))


def train(model: BEATs, steps: int) -> list[float]:
    features, labels = fbank(noise(8, 8000)), torch.arange(8) % 2
    padding = frame_padding(torch.tensor([8000, 6000] * 4), features.shape[1])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = nn.Linear(model.embed_dim, 2)
        optimiser = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=1e-3)
        losses = []
        for _ in range(steps):
            x, _ = model.encode(features, padding)
            loss = nn.functional.cross_entropy(head(x.mean(1)), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    return losses


def test_training_lowers_the_loss_and_reaches_every_parameter(tiny):
    losses = train(tiny.train(), 20)
    assert losses[-1] < 0.5 * losses[0]
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for n, p in tiny.named_parameters() if "k_proj.bias" not in n
    )


@pytest.mark.parametrize("training", [False, True])
def test_bfloat16_autocast(tiny, training):
    tiny.train(training)
    features = fbank(noise(2, 8000))
    padding = frame_padding(torch.tensor([8000, 6000]), features.shape[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x, mask = tiny.encode(features, padding)
    kept = ~mask
    torch.testing.assert_close(x[kept].float(), tiny.encode(features, padding)[0][kept], atol=0.1, rtol=0)
    x.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in tiny.parameters() if p.grad is not None)


def test_dropouts_act_in_training_only():
    dropouts = {"dropout": 0.2, "attention_dropout": 0.2, "encoder_layerdrop": 0.5, "dropout_input": 0.2}
    model, plain = random_beats(TINY.model_copy(update=dropouts), seed=0), random_beats(TINY, seed=1)
    plain.load_state_dict(model.state_dict())
    features = fbank(noise(1, 8000))
    torch.testing.assert_close(model.encode(features)[0], plain.encode(features)[0])
    model.train()
    assert not torch.equal(model.encode(features)[0], model.encode(features)[0])


def attention_by_formula(q, k, v, gate, position_bias, padding_bias):
    logits = q @ k.mT / q.shape[-1] ** 0.5 + gate * position_bias + padding_bias
    return logits.softmax(-1) @ v


def test_attention_and_its_gradients_are_those_of_the_formula():
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 5, 4)] * 3 + [(2, 3, 5, 1), (3, 5, 5)]
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]
    padding = torch.zeros(2, 1, 1, 5, dtype=torch.float64)
    padding[1, ..., 3:] = torch.finfo(torch.float64).min
    ours, plain = gated_attention(*inputs, padding), attention_by_formula(*inputs, padding)
    torch.testing.assert_close(ours, plain)
    weight = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    expected = torch.autograd.grad(plain, inputs, weight)
    torch.testing.assert_close(torch.autograd.grad(ours, inputs, weight), expected)


def test_buckets_of_relative_positions():
    buckets = distance_buckets(101, 32, 64).tolist()
    of = dict(zip(range(-100, 101), buckets, strict=True))
    assert [of[d] for d in (0, -1, -7, 1, 7)] == [0, 1, 7, 17, 23]
    # From 8 on logarithmically: 8 + log(d / 8) / log(64 / 8) · 8.
    assert [of[d] for d in (-8, -11, -16, -32, -63, -64, -100, 16, 100)] == [8, 9, 10, 13, 15, 15, 15, 26, 31]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_model_gives_the_same(tiny):
    features = fbank(noise(2, 8000))
    expected, _ = tiny.encode(features)
    compiled = torch.compile(tiny.encode, backend="aot_eager")  # the default one would need a C compiler
    x, _ = compiled(features)
    torch.testing.assert_close(x, expected, atol=1e-4, rtol=0)
    x.square().mean().backward()
    assert tiny.layers[0].self_attn.q_proj.weight.grad is not None
