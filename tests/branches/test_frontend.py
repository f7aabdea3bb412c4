"""The features are Kaldi's, for any batch, device setting and precision setting."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchaudio.compliance import kaldi

from branches.frames import FRAME_LENGTH, MIN_SAMPLES, n_frames
from branches.frontend import FBANK_MEAN, FBANK_STD, fbank, frame_padding
from scoring.errors import InputError

CASES = Path(__file__).parent / "fixtures" / "cases.npz"


def by_kaldi(waveforms: Tensor) -> Tensor:
    """One clip at a time, in float64: in float32 quiet bins of loud clips are off by up to 4e-4."""
    clips = [
        kaldi.fbank(w[None] * 2**15, num_mel_bins=128, sample_frequency=16000, frame_length=25, frame_shift=10)
        for w in waveforms.double()
    ]
    return ((torch.stack(clips) - FBANK_MEAN) / (2 * FBANK_STD)).float()


@pytest.fixture
def coarse_products() -> Iterator[None]:
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("name", ["w2s", "w10s", "w1p37s"])
def test_released_features(name):
    with np.load(CASES) as cases:
        waveforms, expected = torch.from_numpy(cases[f"input/{name}"]), torch.from_numpy(cases[f"fbank/{name}"])
    torch.testing.assert_close(fbank(waveforms), expected, atol=1e-4, rtol=0)


@settings(deadline=None, max_examples=20)
@given(st.integers(FRAME_LENGTH, 6000), st.floats(0.01, 1.0), st.integers(0, 2**31))
def test_equals_kaldi(n_samples, level, seed):
    noise = torch.rand(2, n_samples, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    features = fbank(noise * level)
    assert features.shape == (2, n_frames(n_samples), 128)
    torch.testing.assert_close(features, by_kaldi(noise * level), atol=1e-4, rtol=0)


@pytest.mark.parametrize("offset", [0.1, 0.5, 0.99])
def test_an_offset_does_not_cost_precision(offset):
    generator = torch.Generator().manual_seed(0)
    waveform = (offset + torch.randint(-1, 2, (1, 16_000), generator=generator) / 32768).float()
    torch.testing.assert_close(fbank(waveform), by_kaldi(waveform), atol=1e-5, rtol=0)


def test_silence_is_kaldis_floor():
    silence = torch.zeros(1, 800)
    torch.testing.assert_close(fbank(silence), by_kaldi(silence))


def test_full_precision_under_autocast_and_coarse_products(coarse_products):
    waveforms = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0)) * 0.1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = fbank(waveforms)
    torch.testing.assert_close(features, by_kaldi(waveforms), atol=1e-4, rtol=0)
    assert torch.get_float32_matmul_precision() == "medium"


def test_gradients_reach_the_waveform_after_inference_mode():
    waveforms = torch.randn(2, 4000)
    with torch.inference_mode():
        fbank(waveforms)
    waveforms.requires_grad_()
    fbank(waveforms).sum().backward()
    assert waveforms.grad is not None
    assert waveforms.grad.abs().sum(1).gt(0).all()


@pytest.mark.parametrize("waveforms", [torch.zeros(800), torch.zeros(1, 399), torch.zeros(1, 800, dtype=torch.int16)])
def test_wrong_input_is_named(waveforms):
    with pytest.raises(InputError, match="samples"):
        fbank(waveforms)


def test_frame_counts():
    assert [n_frames(n) for n in (0, 399, 400, 559, 560, MIN_SAMPLES)] == [0, 0, 1, 1, 2, 16]
    valid = torch.tensor([400, 559, 560, 2000])
    assert (~frame_padding(valid, n_frames(2000))).sum(1).tolist() == [n_frames(n) for n in valid.tolist()]
