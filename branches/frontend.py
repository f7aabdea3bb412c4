"""Waveform → normalised log-mel features, as BEATs expects them.

The features are Kaldi's filter-bank features (25 ms frames every 10 ms, 128 mel bins, no dither), computed for
a whole batch at once on the device the waveforms are on. Gradients flow back to the waveforms.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from branches.frames import FRAME_LENGTH, FRAME_SHIFT, MIN_SAMPLES, N_MELS, SAMPLE_RATE
from scoring.errors import InputError

# Mean and standard deviation of the features of AudioSet; BEATs divides by twice the latter (Chen et al. 2022,
# arXiv:2212.09058, section 4.2 and the released configuration).
FBANK_MEAN = 15.41663
FBANK_STD = 6.55582

_FFT_SIZE = 512
_PREEMPHASIS = 0.97
_INT16_SCALE = 2.0**15


def frame_padding(valid_samples: Tensor, frames: int) -> Tensor:
    """Which frames of a padded batch are not wholly inside their clip.

    Args:
        valid_samples: (B,) integers, each clip's own length in samples.
        frames: number of frames F of the padded batch.

    Returns:
        (B, F) bool, True = padding. With this mask `BEATs.encode` gives a clip the same features in any batch.
    """
    last_sample = torch.arange(frames, device=valid_samples.device) * FRAME_SHIFT + FRAME_LENGTH
    return last_sample > valid_samples.unsqueeze(1)


def fbank(waveforms: Tensor) -> Tensor:
    """Kaldi-compatible log-mel features, normalised as BEATs expects.

    Equals `torchaudio.compliance.kaldi.fbank(waveform * 2**15, num_mel_bins=128, sample_frequency=16000,
    frame_length=25, frame_shift=10)` for each clip, then (x − 15.41663) / (2 · 6.55582). Always computed in
    full float32 precision, also under autocast or where matrix products may use TF32.

    Args:
        waveforms: (B, T) float, 16 kHz, in [−1, 1].

    Returns:
        (B, frames, 128) float32.

    Raises:
        InputError: `waveforms` is not (B, T) float, or shorter than one frame.
    """
    shape, dtype = tuple(waveforms.shape), waveforms.dtype
    if waveforms.dim() != 2 or not waveforms.is_floating_point():
        raise InputError(f"waveforms must be a (batch, samples) float tensor, not {shape} {dtype}")
    if waveforms.shape[1] < FRAME_LENGTH:
        raise InputError(f"a clip of {shape[1]} samples is shorter than one frame; needed are {MIN_SAMPLES}")
    device = waveforms.device
    with torch.autocast(device.type, enabled=False), full_precision():
        frames = waveforms.float().unfold(-1, FRAME_LENGTH, FRAME_SHIFT)
        # The matrix takes the mean out as well, but of a large offset only what float32 has digits for.
        frames = frames - frames.mean(-1, keepdim=True)
        real, imaginary = (frames @ _frame_to_spectrum(device)).chunk(2, dim=-1)
        mel = torch.addcmul(real.square(), imaginary, imaginary) @ _mel_banks(device)
        # The floor is Kaldi's: the spacing of float32 at 1.
        log_mel = mel.clamp_min(torch.finfo(torch.float32).eps).log()
        return (log_mel - FBANK_MEAN) / (2 * FBANK_STD)


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 in products of float32, nor in convolutions, where it is PyTorch's default.

    In features, quiet bins would drown in its rounding, whose error is that of the loudest bin; in embeddings, a
    model that is served on a CPU would have other scores than the run that made it.
    """
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


@cache
def _frame_to_spectrum(device: torch.device) -> Tensor:
    """(400, 512) matrix from a frame in [−1, 1] to the real, then the imaginary parts of its first 256 bins.

    Scaling to 16-bit values, removal of the mean, pre-emphasis by 0.97, Povey's window and the Fourier transform
    of 512 points are all linear. One product, prepared in float64, loses less precision than the steps in float32.
    """
    # Tensors that outlive the call must not be inference tensors: those cannot take part in training later.
    with torch.inference_mode(False):
        frames = torch.eye(FRAME_LENGTH, dtype=torch.float64) * _INT16_SCALE
        frames = frames - frames.mean(-1, keepdim=True)
        # Kaldi lets the first sample precede itself.
        before = torch.cat([frames[:, :1], frames[:, :-1]], dim=-1)
        window = torch.hann_window(FRAME_LENGTH, periodic=False, dtype=torch.float64).pow(0.85)
        spectrum = torch.fft.rfft((frames - _PREEMPHASIS * before) * window, n=_FFT_SIZE)[:, : _FFT_SIZE // 2]
        return torch.cat([spectrum.real, spectrum.imag], dim=-1).float().to(device)


@cache
def _mel_banks(device: torch.device) -> Tensor:
    """(256, 128) triangular filters from 20 Hz to 8 kHz; the bin at 8 kHz would have no weight."""
    with torch.inference_mode(False):
        from torchaudio.compliance import kaldi  # half a second, which most commands need not wait for

        banks, _ = kaldi.get_mel_banks(N_MELS, _FFT_SIZE, SAMPLE_RATE, 20.0, 0.0, 100.0, -500.0, 1.0)
        filters: Tensor = banks.T.contiguous().to(device)
        return filters
