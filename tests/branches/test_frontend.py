import re

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torchaudio.compliance import kaldi

from branches.frames import FRAME_LENGTH, MIN_SAMPLES, n_frames
from branches.frontend import fbank, frame_padding
from branches.spectra import spectrum_of
from scoring.errors import InputError


def by_kaldi(waveforms):
    """One clip at a time, in float64: in float32 quiet bins of loud clips are off by up to 4e-4."""
    clips = [kaldi.fbank(w[None] * 2**15, num_mel_bins=128, sample_frequency=16000) for w in waveforms.double()]
    return ((torch.stack(clips) - 15.41663) / (2 * 6.55582)).float()


def noise(n_samples, seed=0):
    return torch.rand(2, n_samples, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@settings(deadline=None, max_examples=20)
@given(st.integers(FRAME_LENGTH, 6000), st.floats(0.01, 1.0), st.just(0.0), st.integers(0, 2**31))
@example(800, 0.0, 0.0, 0)  # silence is Kaldi's floor
@example(16_000, 5e-5, 0.1, 0)  # an offset costs no precision
@example(16_000, 5e-5, 0.99, 0)
def test_equals_kaldi(n_samples, level, offset, seed):
    waveforms = offset + noise(n_samples, seed) * level
    assert fbank(waveforms).shape == (2, n_frames(n_samples), 128)
    torch.testing.assert_close(fbank(waveforms), by_kaldi(waveforms), atol=1e-5 if offset else 1e-4, rtol=0)


def test_full_precision_under_autocast_and_coarse_products_and_gradients_after_inference_mode(tf32_elsewhere):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = fbank(noise(4000))
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("medium", True)
    torch.testing.assert_close(features, by_kaldi(noise(4000)), atol=1e-4, rtol=0)
    with torch.inference_mode():
        fbank(noise(4000))
    waveforms = noise(4000).requires_grad_()
    fbank(waveforms).sum().backward()
    assert waveforms.grad.abs().sum(1).gt(0).all()


def test_frames_are_counted_and_wrong_input_is_named():
    assert [n_frames(n) for n in (0, 399, 400, 559, 560, MIN_SAMPLES)] == [0, 0, 1, 1, 2, 16]
    valid = [400, 559, 560, 2000]
    padding = frame_padding(torch.tensor(valid), n_frames(2000))
    assert padding.tolist() == [[i >= n_frames(n) for i in range(11)] for n in valid]
    for waveforms, message in (
        (torch.zeros(800), r"must be a \(batch, samples\) float tensor, not \(800,\) torch.float32"),
        (torch.zeros(1, 800, dtype=torch.int16), r"not \(1, 800\) torch.int16"),
        (torch.zeros(1, 399), "a clip of 399 samples is shorter than one frame; needed are 2800"),
    ):
        with pytest.raises(InputError, match=message):
            fbank(waveforms)


def recorded(number, seconds=5.0):
    """Of a machine whose level is not always the same: (samples, 1)."""
    rng = np.random.default_rng(number)
    return (0.02 * 10 ** rng.uniform(0, 0.3) * rng.normal(size=(int(16_000 * seconds), 1))).astype(np.float32)


def with_tone(hz, start, end):
    t = np.arange(80_000)[:, None] / 16_000
    return recorded(99) + 0.1 * np.where((t >= start) & (t < end), np.sin(2 * np.pi * hz * t), 0)


def test_what_stands_out_from_normals_is_told_with_its_time_frequency_and_level_and_of_normals_nothing(tmp_path):
    for i in range(30):
        soundfile.write(tmp_path / f"{i}.wav", recorded(i), 16_000)
    normals = sorted(tmp_path.iterdir())
    many, few = spectrum_of(normals), spectrum_of(normals[:3])
    for sound, change in (
        (with_tone(3100, 2, 4), "2.0–4.0 s, around 3.1 kHz, 1. dB above normal"),
        (with_tone(400, 0, 5), "throughout, around 4.. Hz, 2. dB above normal"),
        (np.repeat(with_tone(3100, 4.5, 5), 2, axis=1), "4.5–5.0 s, around 3.1 kHz, 1. dB above normal"),
        (recorded(99) / 8, "throughout, at all frequencies, 1. dB below normal"),
        (np.cumsum(recorded(99), axis=0) / 40, "throughout, from .* dB .* normal"),
        (np.zeros((80_000, 1)), "throughout, at all frequencies, [0-9]+ dB below normal"),
    ):
        assert re.fullmatch(change, many.change(sound.astype(np.float32)))
    assert [many.change(recorded(i)) for i in range(100, 130)].count("") >= 28
    assert isinstance(few.change(recorded(99, 0.2)), str)
    for gone in (normals[:2], [*normals, None], [*normals, tmp_path / "gone.wav"]):
        assert spectrum_of(gone) is None
