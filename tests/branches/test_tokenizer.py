"""Labels are those of the released tokenizer, or of the seed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from branches.beats import RandomProjectionTokenizer, load_tokenizer
from branches.frontend import fbank
from scoring.errors import InputError

FIXTURES = Path(__file__).parent / "fixtures"


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.1


@pytest.mark.parametrize("name", ["w2s", "w10s", "w1p37s"])
def test_released_labels(name):
    with np.load(FIXTURES / "cases.npz") as cases:
        waveforms, expected = torch.from_numpy(cases[f"input/{name}"]), torch.from_numpy(cases[f"tokenizer/{name}"])
    labels = load_tokenizer(FIXTURES / "tokenizer.pt").labels(waveforms)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, expected.view(len(waveforms), -1))


def test_released_labels_do_not_change_in_training():
    tokenizer = load_tokenizer(FIXTURES / "tokenizer.pt").train()
    labels = tokenizer.labels(noise(1, 8000))
    assert torch.equal(labels, tokenizer.labels(noise(1, 8000)))
    assert not labels.requires_grad
    assert tokenizer.n_codes == 64


def test_random_projection_depends_on_the_seed_alone():
    state = torch.get_rng_state()
    labels = load_tokenizer("random:3").labels(noise(2, 8000))
    assert torch.equal(torch.get_rng_state(), state)
    assert labels.shape == (2, 24)
    assert labels.unique().numel() > 5
    assert torch.equal(labels, RandomProjectionTokenizer(3).labels(noise(2, 8000)))
    assert not torch.equal(labels, RandomProjectionTokenizer(4).labels(noise(2, 8000)))
    assert RandomProjectionTokenizer(3, n_codes=8, dim=16).labels(noise(2, 8000)).max() < 8


def test_random_projection_by_the_formula():
    tokenizer = RandomProjectionTokenizer(0, n_codes=32, dim=8)
    features = fbank(noise(1, 8000))
    labels = tokenizer.patch_labels(features)
    # Patch 11 is the second step in time, fourth band.
    patch = features[0, 16:32, 48:64].reshape(-1)
    patch = (patch - patch.mean()) / patch.std(correction=0)
    cosine = torch.nn.functional.cosine_similarity((patch @ tokenizer.projection)[None], tokenizer.codes)
    assert labels[0, 11] == cosine.argmax()


def test_a_patch_s_label_is_that_of_its_shape_and_not_of_its_level():
    features = fbank(noise(1, 8000))
    tokenizer = RandomProjectionTokenizer(0)
    assert torch.equal(tokenizer.patch_labels(features), tokenizer.patch_labels(features + 1.5))


@pytest.mark.parametrize("name", ["random:", "random:x", "random:-1"])
def test_a_wrong_seed_is_named(name):
    with pytest.raises(InputError, match="random:SEED"):
        load_tokenizer(name)


def test_a_backbone_is_no_tokenizer():
    with pytest.raises(InputError, match=r"pretrained\.pt: .*quant_n"):
        load_tokenizer(FIXTURES / "pretrained.pt")


def test_short_clips_are_named():
    for tokenizer in (load_tokenizer("random:1"), load_tokenizer(FIXTURES / "tokenizer.pt")):
        with pytest.raises(InputError, match="frames"):
            tokenizer.labels(noise(1, 2799))


@pytest.mark.parametrize("path", ["random:0", FIXTURES / "tokenizer.pt"], ids=["random", "released"])
def test_labels_under_autocast_are_chosen_in_float32(path):
    """On a GPU the tokenizers' encoders may cost more than the step; what is nearest is still told exactly."""
    tokenizer = load_tokenizer(path)
    waveforms = 0.1 * torch.randn(4, 16_000, generator=torch.Generator().manual_seed(0))
    exact = tokenizer.labels(waveforms)
    computed = []
    if path != "random:0":
        tokenizer.backbone.layers[0].fc1.register_forward_hook(lambda *a: computed.append(a[-1].dtype))
        tokenizer.quantize_layer.register_forward_hook(lambda *a: computed.append(a[-1].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        labels = tokenizer.labels(waveforms)
    assert (labels == exact).float().mean() > (0.8 if computed else 0.999)
    assert computed in ([], [torch.bfloat16, torch.float32])
