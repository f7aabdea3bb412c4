from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from threading import Barrier

import numpy as np
import pytest
import soundfile

from branches.audio import cache as cache_module
from branches.audio import read_clip
from branches.audio.cache import open_cache
from branches.data.dataset import index_of
from branches.data.inspection import inspect
from branches.data.synthetic import SyntheticSize, write_dataset
from branches.frames import MIN_SAMPLES
from scoring.errors import InputError

NAME = "fan/train/section_00_source_train_normal_{:04d}_noAttribute.wav"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "data" / "fan" / "train").mkdir(parents=True)
    return tmp_path / "data"


def write(root, number, samples, rate=16_000, subtype="PCM_16"):
    path = root / NAME.format(number)
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def noise(n=8_000, channels=2, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (n, channels)).astype(np.float32)


def index_in(root):
    return index_of(path.relative_to(root).as_posix() for path in sorted(root.rglob("*.wav")))


def cache_of(root, tmp_path):
    return open_cache(root, index_in(root), tmp_path / "cache" / "x")


def test_cached_clips_are_the_files_to_the_last_bit(tmp_path):
    root = tmp_path / "data"
    write_dataset(root, SyntheticSize(2, 1, 1, 1.0), machines=["rotor"])
    cache = cache_of(root, tmp_path)
    assert cache.samples.dtype == np.int16
    for i, path in enumerate(index_in(root)["path"].to_pylist()):
        samples, _ = soundfile.read(root / path, dtype="float32")
        np.testing.assert_array_equal(cache.waveform(i, "near"), samples[:, 0])
        np.testing.assert_array_equal(cache.waveform(i, "far"), samples[:, 1])
        np.testing.assert_allclose(cache.waveform(i, "mean"), samples.mean(axis=1), atol=1e-7)
        np.testing.assert_array_equal(cache.waveform(i, "far", 300, 500), samples[300:800, 1])


def test_lengths_channels_and_formats_may_differ(root, tmp_path):
    write(root, 0, noise(5_000))
    write(root, 1, noise(4_000, 1), subtype="FLOAT")
    cache = cache_of(root, tmp_path)
    assert cache.lengths.tolist() == [5_000, 4_000]
    assert cache.samples.dtype == np.float32
    for channel in ("near", "far", "mean"):
        np.testing.assert_array_equal(cache.waveform(1, channel), noise(4_000, 1)[:, 0])


def test_other_rates_are_resampled_and_said_once(root, tmp_path, caplog):
    time = np.arange(32_000) / 32_000
    for i in range(3):
        write(root, i, 0.5 * np.sin(2 * np.pi * 440 * time)[:, None], rate=32_000)
    cache = cache_of(root, tmp_path)
    assert cache.lengths.tolist() == [16_000] * 3
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(cache.waveform(0, "near")[500:-500], expected[500:-500], atol=2e-3)
    said = [r.getMessage() for r in caplog.records if "resampled" in r.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("3 of 3 clips are not at 16000 Hz")


def test_the_cache_is_made_once(root, tmp_path):
    path = write(root, 0, noise())
    index = index_in(root)
    first = open_cache(root, index, tmp_path / "cache" / "x").waveform(0, "near")
    path.unlink()
    np.testing.assert_array_equal(open_cache(root, index, tmp_path / "cache" / "x").waveform(0, "near"), first)


def test_a_cache_of_other_data_is_refused(root, tmp_path):
    write(root, 0, noise())
    cache_of(root, tmp_path)
    write(root, 1, noise())
    with pytest.raises(InputError, match="the audio cache is of another data set"):
        cache_of(root, tmp_path)


def test_two_writers_whose_locks_do_not_hold_give_a_whole_cache(root, tmp_path, monkeypatch):
    clips = [noise(seed=i) for i in range(60)]
    for i, clip in enumerate(clips):
        write(root, i, clip, subtype="FLOAT")
    monkeypatch.setattr(cache_module, "FileLock", lambda path: nullcontext())
    index, together = index_in(root), Barrier(2)

    def writer(folder):
        together.wait()
        return open_cache(root, index, folder)

    for attempt in range(3):
        with ThreadPoolExecutor(2) as writers:
            caches = list(writers.map(writer, [tmp_path / f"cache-{attempt}" / "x"] * 2))
        for cache in [*caches, open_cache(root, index, tmp_path / f"cache-{attempt}" / "x")]:
            for i, clip in enumerate(clips):
                np.testing.assert_array_equal(cache.waveform(i, "near"), clip[:, 0])
        assert [path.name for path in (tmp_path / f"cache-{attempt}").iterdir()] == ["x"]


def truncated(root):
    path = write(root, 1, noise())
    path.write_bytes(path.read_bytes()[:-4_000])


def not_finite(root):
    samples = noise()
    samples[77, 1] = np.nan
    write(root, 1, samples, subtype="FLOAT")


BAD = {
    "truncated": truncated,
    "not a finite number": not_finite,
    "empty": lambda root: write(root, 1, noise(0)),
    "not a readable recording": lambda root: (root / NAME.format(1)).write_bytes(b"RIFF\0\0\0\0no sound"),
    "shorter than one patch": lambda root: write(root, 1, noise(MIN_SAMPLES - 1)),
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_recording_is_named_and_leaves_nothing(message, root, tmp_path):
    write(root, 0, noise())
    BAD[message](root)
    index = index_of([NAME.format(i) for i in range(2)])
    with pytest.raises(InputError, match=message) as raised:
        open_cache(root, index, tmp_path / "cache" / "x")
    assert NAME.format(1) in str(raised.value)
    assert [p.name for p in (tmp_path / "cache").iterdir() if p.is_dir()] == []
    (problem,) = inspect(root, index).problems
    assert message in problem


def test_a_zero_byte_file_is_named(root):
    path = root / NAME.format(0)
    path.touch()
    with pytest.raises(InputError, match="not a readable recording"):
        read_clip(path)


def test_the_shortest_clip_is_long_enough(root, tmp_path):
    write(root, 0, noise(MIN_SAMPLES))
    assert cache_of(root, tmp_path).lengths.tolist() == [MIN_SAMPLES]
