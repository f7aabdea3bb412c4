"""A training step of BEATs' size (90 M parameters, random weights, 10 s clips) on two cores, and frozen passes."""

from collections.abc import Callable, Iterator
from itertools import count

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from branches.audio.cache import open_cache
from branches.beats import attention
from branches.beats.checkpoint import random_beats
from branches.data.dataset import read_index
from branches.frozen import frozen_embeddings
from branches.spec import BranchSpec, PatchesSpec
from tests.benchmarks.measured import fastest
from tests.gpu.checks import BASE, measure_what_is_not_the_encoder

pytestmark = pytest.mark.benchmark


@pytest.fixture(autouse=True)
def two_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


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


def test_training_step_against_eager_attention(monkeypatch):
    model, features = random_beats(BASE, seed=0).train(), torch.randn(4, 998, 128)

    def ours() -> None:
        model.encode(features)[0].square().mean().backward()
        model.zero_grad()  # at the end: each step begins and ends with the same memory

    def eager() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(attention, "gated_attention", eager_attention)
            ours()

    ours_s, eager_s = fastest(ours, eager, rounds=3)
    ours_gib, eager_gib = peak_gib(ours), peak_gib(eager)
    print(f"\ntraining step {ours_s:.2f} s against {eager_s:.2f} s eager: {eager_s / ours_s:.2f}×")
    print(f"peak memory {ours_gib:.2f} GiB against {eager_gib:.2f} GiB eager: {eager_gib / ours_gib:.2f}×")
    assert ours_s < eager_s
    assert ours_gib < 0.8 * eager_gib


def test_share_of_a_training_step_that_is_not_the_encoder():
    """Loading, log-mels, augmentation, labels of masked patches, loss and optimiser."""
    print()
    assert measure_what_is_not_the_encoder("cpu", 4, 2) < 0.1


POOLINGS = ["mean", "band_statistics", "band_mean", *({"name": "relative_deviation", "gamma": g} for g in (4, 6, 8))]


def test_one_pass_with_six_embeddings_against_six_passes(dataset, tmp_path):
    audio = open_cache(dataset, read_index(dataset), tmp_path / "cache")
    spec = BranchSpec.model_validate({"strategy": "frozen"})
    inputs = spec.frozen_inputs([PatchesSpec.model_validate({"pooling": pooling}) for pooling in POOLINGS])
    fresh = (tmp_path / str(i) for i in count())

    def embed(*groups):
        for group in groups:
            frozen_embeddings(group[0], group, audio, next(fresh), "cpu")

    together, alone = fastest(lambda: embed(inputs), lambda: embed(*([one] for one in inputs)), rounds=3)
    print(f"\n{len(inputs)} embeddings: one pass {together:.2f} s, one by one {alone:.2f} s: {alone / together:.1f}×")
    assert alone > 3 * together
