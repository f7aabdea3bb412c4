import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branches.audio.cache import in_memory
from branches.spec import BranchSpec
from branches.training import batches as batching
from branches.training.batches import batch_rows, batches, make_batch
from branches.training.training_set import NoisePool, TrainingClips

LENGTHS = [9_601, 9_601, 9_600, 4_000] * 4


def spec_with(augmentation=None, channel="near", seed=0, **training):
    training = {"steps": 5, "batch_size": 8, "crop_seconds": 0.6, **training}
    settings = {"augmentation": augmentation or {}, "training": training, "channel": channel, "seed": seed}
    return BranchSpec.model_validate(settings)


@pytest.fixture(scope="module")
def clips():
    """Near, clip i holds i + 1, i + 1 + 1e-5, …; far the negative of it. Noise is for the fan, of half the clips."""
    tracks = [np.arange(n) * 1e-5 + i + 1 for i, n in enumerate(LENGTHS)]
    audio = in_memory([np.stack([track, -track], axis=1).astype(np.float32) for track in tracks])
    rows, machines = np.arange(16), np.array(["fan", "pump"] * 8, object)
    noise = NoisePool(in_memory([np.full((10_000, 1), 9.0, np.float32)]), {"fan": np.array([0])}, "near")
    return TrainingClips(audio, rows, machines, rows % 3, np.zeros(3, bool), noise=noise)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 40))
def test_every_pass_takes_every_clip_once_in_an_order_of_its_own(n, batch_size):
    rows = np.concatenate([batch_rows(n, batch_size, step, seed=3) for step in range(-(-3 * n // batch_size))])
    passes = rows[: 3 * n].reshape(3, n)
    assert (np.sort(passes, axis=1) == np.arange(n)).all()
    assert n < 8 or len({tuple(p) for p in (*passes, batch_rows(n, n, 0, seed=4))}) == 4


def same(batch, other):
    pairs = [(batch.labels, other.labels), *zip(batch.waveforms, other.waveforms, strict=True)]
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(("first", "workers"), [(0, 1), (3, 1), (0, 3), (3, 8)])
def test_batches_made_ahead_are_those_made_alone(clips, first, workers):
    spec = spec_with({"noise": {}}, accumulation=2)
    made = list(batches(spec, clips, first, workers))
    assert len(made) == 2 * (5 - first)
    assert all(same(batch, make_batch(spec, clips, number)) for number, batch in enumerate(made, 2 * first))
    assert not same(made[0], make_batch(spec_with({"noise": {}}, seed=1), clips, 2 * first))


def test_as_many_batches_are_put_together_at_once_as_there_are_workers(clips, monkeypatch):
    together = threading.Barrier(3)  # passed by three at once, or by none
    monkeypatch.setattr(batching, "make_batch", lambda *a: (together.wait(60), make_batch(*a))[1])
    assert len(list(batches(spec_with(steps=6), clips, 0, workers=3))) == 6


@pytest.mark.parametrize("channel", ["near", "far"])
def test_longer_clips_are_cut_anywhere_and_shorter_ones_are_whole(clips, channel):
    begins, batch = set(), make_batch(spec_with(channel=channel, batch_size=64), clips, 0)
    for waveform, label in zip(batch.waveforms, batch.labels, strict=True):
        clip = int(abs(waveform[0])) - 1
        begins.add((LENGTHS[clip], round((abs(waveform[0]) - clip - 1) * 1e5)))
        assert (label, len(waveform)) == (clip % 3, min(9_600, LENGTHS[clip]))
        assert (waveform > 0).all() == (channel == "near")
        np.testing.assert_allclose(np.diff(abs(waveform[::100])), 1e-3, atol=1e-5)
    assert begins == {(9_601, 0), (9_601, 1), (9_600, 0), (4_000, 0)}


def test_noise_is_mixed_into_the_share_of_clips_that_have_some(clips):
    plain = make_batch(spec_with(batch_size=400), clips, 0).waveforms
    mixed = make_batch(spec_with({"noise": {"probability": 0.3, "snr_db": [0.0]}}, batch_size=400), clips, 0).waveforms
    noisy = np.array([not np.array_equal(a, b) for a, b in zip(plain, mixed, strict=True)])
    fans = np.array([int(waveform[0]) % 2 == 1 for waveform in plain])
    assert not noisy[~fans].any()
    assert noisy[fans].mean() == pytest.approx(0.3, abs=0.1)


def test_generated_clips_stand_beside_the_recorded(clips):
    generated = np.arange(6 * 49).reshape(6, 49, 1).repeat(128, axis=2).astype(np.float16)
    more = replace(clips, generated=generated, labels=np.concatenate([clips.labels, np.arange(6)]))
    batch = make_batch(spec_with(batch_size=88), more, 0)  # four passes
    assert (len(batch.waveforms), len(batch.features), len(batch.labels)) == (64, 24, 88)
    begins = set()
    for label, made in zip(batch.labels[64:], batch.features, strict=True):
        assert (made.shape, made.dtype) == ((48, 128), np.float32)
        begins.add((label, int(made[0, 0]) - label * 49))
    assert {label for label, _ in begins} == set(range(6))
    assert {first for _, first in begins} == {0, 1}
