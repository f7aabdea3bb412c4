import dataclasses
import threading

import numpy as np
import pytest

from branches.audio.cache import open_cache
from branches.data.dataset import noise_index, read_index
from branches.data.synthetic import SyntheticSize, write_dataset
from branches.spec import BranchSpec
from branches.training import batches as batching
from branches.training.batches import batch_rows, batches, make_batch
from branches.training.training_set import training_clips


def spec_with(augmentation=None, **settings):
    training = {"steps": 5, "batch_size": 8, "crop_seconds": 0.6}
    return BranchSpec.model_validate({"augmentation": augmentation or {}, "training": training, **settings})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("batches")
    write_dataset(root / "data", SyntheticSize(10, 2, 1, 1.0), machines=["rotor", "valve"])
    noise = root / "data" / "rotor" / "supplemental"
    noise.mkdir()
    some = sorted((root / "data" / "rotor" / "test").iterdir())[0]
    (noise / "section_00_noise_0000.wav").write_bytes(some.read_bytes())
    (noise / "section_00_clean_0000.wav").write_bytes(some.read_bytes())
    index = read_index(root / "data")
    return root, index, open_cache(root / "data", index, root / "cache")


def clips_for(data, spec):
    root, index, audio = data
    supplemental = noise_index(root / "data")
    return training_clips(
        audio, index, spec, noise=(open_cache(root / "data", supplemental, root / "noise"), supplemental)
    )


def test_every_pass_sees_every_clip_once():
    n, batch = 23, 5
    rows = np.concatenate([batch_rows(n, batch, step, seed=3) for step in range(23)])
    for k in range(5):
        assert sorted(rows[k * n : (k + 1) * n]) == list(range(n))
    assert rows[:n].tolist() != rows[n : 2 * n].tolist()
    assert len(batch_rows(3, 32, 0, 0)) == 32


@pytest.mark.parametrize(("first", "workers"), [(0, 1), (3, 1), (0, 3), (3, 8)])
def test_batches_made_ahead_are_those_made_alone(data, first, workers):
    spec = spec_with({"noise": {"probability": 1.0}})
    clips = clips_for(data, spec)
    made = list(batches(spec, clips, first, workers))
    assert len(made) == 5 - first
    for number, batch in enumerate(made, first):
        alone = make_batch(spec, clips, number)
        assert np.array_equal(batch.labels, alone.labels)
        assert all(np.array_equal(a, b) for a, b in zip(batch.waveforms, alone.waveforms, strict=True))


def test_as_many_batches_are_put_together_at_once_as_there_are_workers(data, monkeypatch):
    together = threading.Barrier(3)  # passed by three at once, or by none
    monkeypatch.setattr(batching, "make_batch", lambda *a: (together.wait(60), make_batch(*a))[1])
    spec = spec_with(training={"steps": 6, "batch_size": 8, "crop_seconds": 0.6})
    assert len(list(batches(spec, clips_for(data, spec), 0, workers=3))) == 6


def test_accumulation_makes_more_batches(data):
    spec = BranchSpec.model_validate(
        {"training": {"steps": 3, "batch_size": 4, "accumulation": 2, "crop_seconds": 0.5}}
    )
    clips = clips_for(data, spec)
    assert len(list(batches(spec, clips, 1))) == 4


def heard(data, augmentation):
    spec = spec_with(augmentation)
    return make_batch(spec, clips_for(data, spec), 0).waveforms


def test_noise_comes_from_where_it_is_asked_for(data):
    plain = heard(data, None)
    for source in ("far", "supplemental"):
        noisy = heard(data, {"noise": {"probability": 1.0, "snr_db": [0.0], "source": source}})
        differ = [not np.allclose(a, b[: len(a)]) for a, b in zip(plain, noisy, strict=True)]
        assert any(differ)
        # The valve has no supplemental noise.
        assert all(differ) == (source == "far")


def test_generated_clips_stand_beside_the_recorded(data):
    spec = spec_with()
    clips = clips_for(data, spec)
    generated = np.random.default_rng(0).normal(size=(6, 90, 128)).astype(np.float16)
    more = dataclasses.replace(clips, generated=generated, labels=np.concatenate([clips.labels, np.full(6, 1)]))
    seen = [make_batch(spec, more, n) for n in range(4)]
    assert sum(len(b.features) for b in seen) > 0
    for batch in seen:
        assert len(batch.labels) == len(batch.waveforms) + len(batch.features) == 8
        assert (batch.labels[len(batch.waveforms) :] == 1).all()
        assert all(f.shape == (48, 128) and f.dtype == np.float32 for f in batch.features)
