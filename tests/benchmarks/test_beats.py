"""How fast the BEATs backbone and its frontend are on this machine, as ratios measured in one run.

    pytest -m benchmark -s tests/benchmarks/test_beats.py

The network is the base size (90 M parameters) with random weights, on 10 s clips. The rounds of what is compared
alternate, and the fastest of each counts.
"""

import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torchaudio.compliance import kaldi

from branches.beats import BEATs, attention
from branches.beats.checkpoint import random_beats
from branches.frontend import FBANK_MEAN, FBANK_STD, fbank
from tests.gpu.checks import BASE, print_shares_of_a_step

pytestmark = pytest.mark.benchmark

BATCH, FRAMES, PATCHES = 4, 998, 496


@pytest.fixture(autouse=True)
def two_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base() -> BEATs:
    return random_beats(BASE, seed=0)


def fastest(*functions: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of each function's fastest call."""
    best = [float("inf")] * len(functions)
    for _ in range(rounds + 1):
        for i, function in enumerate(functions):
            start = time.perf_counter()
            function()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def products() -> list[tuple[Callable[[], Tensor], int, float]]:
    """The forward pass's matrix products: a call, how often it is made, and its GFLOP."""
    d, h, ffn, layers = 768, 12, 3072, BASE.encoder_layers
    x, hidden = torch.randn(BATCH * PATCHES, d), torch.randn(BATCH * PATCHES, ffn)
    square, up, down = torch.randn(d, d), torch.randn(d, ffn), torch.randn(ffn, d)
    q, weights = torch.randn(BATCH * h, PATCHES, d // h), torch.randn(BATCH * h, PATCHES, PATCHES)
    tokens = BATCH * PATCHES / 1e9
    return [
        (lambda: x @ square, 4 * layers, 2 * tokens * d * d),
        (lambda: x @ up, layers, 2 * tokens * d * ffn),
        (lambda: hidden @ down, layers, 2 * tokens * d * ffn),
        (lambda: q @ q.mT, layers, 2 * tokens * PATCHES * d),
        (lambda: weights @ q, layers, 2 * tokens * PATCHES * d),
    ]


@torch.inference_mode()
def test_forward_against_the_speed_of_matrix_products(base):
    features = torch.randn(BATCH, FRAMES, 128)
    parts = products()
    seconds, *each = fastest(lambda: base.encode(features), *(call for call, _, _ in parts), rounds=6)
    # The positional convolution is counted at the speed of the products.
    conv = 2 * BATCH * PATCHES * 768 * (768 // 16) * 128 / 1e9
    work = sum(times * gflop for _, times, gflop in parts)
    limit = work / sum(times * t for (_, times, _), t in zip(parts, each, strict=True))
    reached = (work + conv) / seconds
    print(f"\nforward {seconds:.2f} s, {reached:.0f} of {limit:.0f} GFLOP/s: {reached / limit:.0%}")


def eager_attention(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, bias: Tensor, padding: Tensor | None, dropout: float = 0.0
) -> Tensor:
    """Step by step, as published: the logits are brought down by 32 and their maximum for half precision."""
    logits = (q / 32 * q.shape[-1] ** -0.5) @ k.mT
    logits = (logits - logits.max(-1, keepdim=True).values) * 32
    logits = logits + gate * bias
    if padding is not None:
        logits = logits + padding
    return F.dropout(logits.softmax(-1), dropout) @ v


@torch.inference_mode()
def test_bfloat16_forward_against_eager_float32(base, monkeypatch):
    """Only a CPU with bfloat16 products (AMX, AVX512-BF16) can be faster in it."""
    features = torch.randn(BATCH, FRAMES, 128)
    base.eval()

    def eager() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(attention, "gated_attention", eager_attention)
            base.encode(features)

    def ours() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            base.encode(features)

    ours_s, eager_s = fastest(ours, eager, rounds=4)
    print(f"\nbfloat16 forward {ours_s:.2f} s against {eager_s:.2f} s eager float32: {eager_s / ours_s:.2f}×")


def training_step(model: BEATs, features: Tensor) -> None:
    model.encode(features)[0].square().mean().backward()
    model.zero_grad()  # at the end: each step begins and ends with the same memory


def peak_gib(step: Callable[[], None]) -> float:
    """Highest sum of what the step allocated and did not yet free."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        step()
    held = peak = 0
    for event in sorted(recorded.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 2**30


def test_training_step_against_eager_attention(base, monkeypatch):
    features = torch.randn(BATCH, FRAMES, 128)
    base.train()

    def eager() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(attention, "gated_attention", eager_attention)
            training_step(base, features)

    def ours() -> None:
        training_step(base, features)

    ours_s, eager_s = fastest(ours, eager, rounds=2)
    ours_gib, eager_gib = peak_gib(ours), peak_gib(eager)
    print(f"\ntraining step {ours_s:.2f} s against {eager_s:.2f} s eager: {eager_s / ours_s:.2f}×")
    print(f"peak memory {ours_gib:.2f} GiB against {eager_gib:.2f} GiB eager: {eager_gib / ours_gib:.2f}×")


@torch.inference_mode()
def test_frontend_against_a_loop_over_clips():
    waveforms = torch.randn(32, 160_000) * 0.1

    def loop() -> Tensor:
        clips = [
            kaldi.fbank(w[None] * 2**15, num_mel_bins=128, sample_frequency=16000, frame_length=25, frame_shift=10)
            for w in waveforms
        ]
        return (torch.stack(clips) - FBANK_MEAN) / (2 * FBANK_STD)

    ours_s, loop_s = fastest(lambda: fbank(waveforms), loop, rounds=8)
    print(f"\nfrontend {ours_s * 1e3:.0f} ms against {loop_s * 1e3:.0f} ms loop: {loop_s / ours_s:.2f}×")


def test_share_of_a_training_step_that_is_not_the_encoder() -> None:
    """Loading, log-mels, augmentation, labels of masked patches, loss and optimiser."""
    print()
    assert print_shares_of_a_step("cpu", 4, 2) < 0.1
