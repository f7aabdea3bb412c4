from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from threading import Barrier

import numpy as np
import pytest
import soundfile

from branches.audio import cache as cache_module
from branches.audio.cache import in_memory, open_cache
from branches.audio.formats import Format, formats_of, read_formats, write_formats
from branches.data.dataset import index_of
from scoring.errors import InputError

NAME = "fan/train/section_00_source_train_normal_{:04d}_noAttribute.wav"
FAN = Format(seconds=(1.0, 1.2), channels=(2,))


@pytest.fixture
def root(tmp_path):
    (tmp_path / "data" / "fan" / "train").mkdir(parents=True)
    return tmp_path / "data"


def write(root, number, samples, rate=16_000, subtype="FLOAT"):
    soundfile.write(root / NAME.format(number), samples, rate, subtype=subtype)


def noise(n=8_000, channels=2, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (n, channels)).astype(np.float32)


def silence(seconds, channels=2):
    return np.zeros((round(16_000 * seconds), channels), np.float32)


def cache_of(root, clips, folder="x"):
    return open_cache(root, index_of(map(NAME.format, range(clips))), root.parent / "cache" / folder)


def test_cached_clips_are_the_files_to_the_last_bit(dataset, index, audio):
    assert audio.samples.dtype == np.int16
    for i, path in enumerate(index["path"].to_pylist()):
        samples, _ = soundfile.read(dataset / path, dtype="float32")
        np.testing.assert_array_equal(audio.waveform(i, "near"), samples[:, 0])
        np.testing.assert_array_equal(audio.waveform(i, "far", 300, 500), samples[300:800, 1])
        np.testing.assert_allclose(audio.waveform(i, "mean"), samples.mean(axis=1), atol=1e-7)


def test_full_scale_is_full_scale(root):
    loud = np.linspace(-32_768, 32_767, 4_000).astype(np.int16)[:, None]
    write(root, 0, loud, subtype="PCM_16")
    np.testing.assert_array_equal(cache_of(root, 1).samples, loud[:, 0])


def test_lengths_channels_formats_and_rates_may_differ(root, caplog):
    write(root, 0, np.sin(2 * np.pi * 440 * np.arange(32_000) / 32_000), rate=32_000, subtype="PCM_16")
    write(root, 1, noise(5_000), subtype="PCM_16")
    cache = cache_of(root, 2, "exact but for the rate")
    assert cache.lengths.tolist() == [16_000, 5_000]
    expected = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(cache.waveform(0, "near")[500:-500], expected[500:-500], atol=2e-3)
    (said,) = (r.getMessage() for r in caplog.records if "resampled" in r.getMessage())
    assert said == f"1 of 2 clips are not at 16000 Hz and are resampled, e.g. {NAME.format(0)}"
    write(root, 0, noise(4_000, 1))
    cache = cache_of(root, 2)
    assert cache.lengths.tolist() == [4_000, 5_000]
    for channel in ("near", "far", "mean"):
        np.testing.assert_array_equal(cache.waveform(0, channel), noise(4_000, 1)[:, 0])


def test_the_cache_is_made_once_and_of_one_data_set(root):
    write(root, 0, noise())
    first = cache_of(root, 1).waveform(0, "near")
    (root / NAME.format(0)).unlink()
    np.testing.assert_array_equal(cache_of(root, 1).waveform(0, "near"), first)
    with pytest.raises(InputError, match="x: the audio cache is of another data set; delete the folder and run again"):
        cache_of(root, 2)
    write(root, 0, noise())
    (root / NAME.format(1)).write_bytes(b"RIFF\0\0\0\0no sound")
    with pytest.raises(InputError, match=f"{NAME.format(1)}: not a readable recording"):
        cache_of(root, 2, "y")
    assert sorted(path.name for path in (root.parent / "cache").iterdir()) == ["x", "x.lock", "y.lock"]


def test_two_writers_whose_locks_do_not_hold_give_a_whole_cache(root, monkeypatch):
    for i in range(40):
        write(root, i, noise(seed=i))
    monkeypatch.setattr(cache_module, "FileLock", lambda path: nullcontext())
    together = Barrier(2)

    def writer(folder):
        together.wait(60)
        return cache_of(root, 40, folder)

    for folder in "abc":
        with ThreadPoolExecutor(2) as writers:
            made = list(writers.map(writer, [folder] * 2))
        for cache in (*made, cache_of(root, 40, folder)):
            for i in range(40):
                np.testing.assert_array_equal(cache.waveform(i, "near"), noise(seed=i)[:, 0])
    assert sorted(path.name for path in (root.parent / "cache").iterdir()) == ["a", "b", "c"]


def test_the_formats_of_a_runs_training_clips_are_kept_in_its_folder(tmp_path):
    names = [NAME.format(i) for i in range(3)]
    index = index_of(["fan/test/section_00_0000.wav", *names, names[0].replace("fan", "pump")])
    clips = in_memory([silence(s, c) for s, c in ((9, 1), (1.2, 2), (1, 2), (1.1, 2), (4, 1))])
    write_formats(tmp_path, clips, index)
    assert read_formats(tmp_path) == {"fan": FAN, "pump": Format(seconds=(4.0, 4.0), channels=(1,))}
    assert read_formats(tmp_path) == formats_of(clips, index)
    for damaged in ("{", '{"fan": 1}'):
        (tmp_path / "formats.json").write_text(damaged)
        assert read_formats(tmp_path) == read_formats(tmp_path / "absent") == {}


def test_it_is_said_what_a_recording_has_unlike_the_machines_clips_of_all_sections():
    assert FAN.differences(silence(0.66)) == "0.66 s long, those 1 to 1.2 s"
    assert FAN.differences(silence(1.81, 1)) == "1.81 s long, those 1 to 1.2 s; of 1 channels, those of 2"
    assert FAN.differences(silence(0.67)) == FAN.differences(silence(1.79)) == ""
    other, both = Format(seconds=(0.5, 1.1), channels=(1, 2)), Format(seconds=(0.5, 1.2), channels=(1, 2))
    assert other.joined(FAN) == FAN.joined(other) == both
