from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from branches.beats import RandomProjectionTokenizer, load_tokenizer
from branches.frontend import fbank
from scoring.errors import InputError

FIXTURES = Path(__file__).parents[1] / "fixtures"
RELEASED = FIXTURES / "tokenizer.pt"


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.1


@pytest.mark.parametrize("name", ["w2s", "w10s", "w1p37s"])
def test_released_labels(name):
    with np.load(FIXTURES / "cases.npz") as cases:
        waveforms, expected = torch.from_numpy(cases[f"input/{name}"]), torch.from_numpy(cases[f"tokenizer/{name}"])
    tokenizer = load_tokenizer(RELEASED)
    labels = tokenizer.labels(waveforms)
    assert (tokenizer.n_codes, labels.dtype, labels.requires_grad) == (64, torch.int64, False)
    assert torch.equal(labels, expected.view(len(waveforms), -1))
    assert torch.equal(tokenizer.train().labels(waveforms), labels)  # without dropout


def test_random_labels_follow_the_formula_and_depend_on_the_seed_alone():
    state, labels = torch.get_rng_state(), load_tokenizer("random:3").labels(noise(2, 8000))
    assert torch.equal(torch.get_rng_state(), state)
    assert labels.shape == (2, 24)
    assert labels[0, :6].tolist() == [864, 286, 968, 829, 954, 956]  # today and always
    tokenizer, features = RandomProjectionTokenizer(0, n_codes=32, dim=8), fbank(noise(1, 8000))
    labels = tokenizer.patch_labels(features)
    patch = features[0, 16:32, 48:64].reshape(-1)  # patch 11 is the second step in time, fourth band
    patch = (patch - patch.mean()) / patch.std(correction=0)
    assert labels[0, 11] == F.cosine_similarity((patch @ tokenizer.projection)[None], tokenizer.codes).argmax()
    assert torch.equal(tokenizer.patch_labels(features + 1.5), labels)  # of a patch's shape, not of its level


def test_under_autocast_the_encoder_alone_computes_in_bfloat16():
    """On a GPU the tokenizers' encoders may cost more than the step; what is nearest is still told exactly."""
    released, computed = load_tokenizer(RELEASED), []
    for layer in (released.backbone.layers[0].fc1, released.quantize_layer):
        layer.register_forward_hook(lambda *a: computed.append(a[-1].dtype))
    for tokenizer in (released, load_tokenizer("random:0")):
        exact = tokenizer.labels(noise(4, 16_000))
        with torch.autocast("cpu", torch.bfloat16):
            labels = tokenizer.labels(noise(4, 16_000))
        assert (labels == exact).float().mean() > (0.8 if tokenizer is released else 0.999)
    assert computed == [torch.float32, torch.float32, torch.bfloat16, torch.float32]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("random:", r"tokenizer random:: write random:SEED with a whole number"),
        ("random:-1", "random:SEED"),
        (FIXTURES / "pretrained.pt", r"pretrained\.pt: cfg has no quant_n and quant_dim; is this a BEATs tokenizer\?"),
        ("random:1", r"features are \(1, 15, 128\), must be \(batch, frames ≥ 16, 128\)"),
        (RELEASED, r"features are \(1, 15, 128\), must be \(batch, frames ≥ 16, 128\)"),
    ],
)
def test_what_is_no_tokenizer_and_clips_without_a_patch_are_named(path, message):
    with pytest.raises(InputError, match=message):
        load_tokenizer(path).labels(noise(1, 2799))
