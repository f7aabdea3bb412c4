"""Clips that can be used, but look wrong."""

import numpy as np
import pytest
import soundfile

from branches.data.dataset import index_of
from branches.data.inspection import inspect

NAMES = [f"fan/train/section_00_source_train_normal_{i:04d}_noAttribute.wav" for i in range(4)]


def test_silence_and_the_same_recording_twice_are_noted(tmp_path):
    (tmp_path / "fan" / "train").mkdir(parents=True)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 16_000, 2))
    clips = [noise[0], noise[1], noise[0], noise[1] * [1, 0]]
    for name, samples in zip(NAMES, clips, strict=True):
        soundfile.write(tmp_path / name, samples, 16_000)
    found = inspect(tmp_path, index_of(NAMES))
    assert found.problems == []
    assert found.notes == [
        f"{NAMES[2]}: the same recording as {NAMES[0]}",
        f"{NAMES[3]}: nothing is heard on channel 1",
    ]


def test_floats_that_hold_integers_are_noted(tmp_path):
    inspection = write_machine(
        tmp_path,
        lambda name, x: (x * 32768, 16_000, "FLOAT") if "train_normal_0001" in name else (x, 16_000, "PCM_16"),
    )
    (note,) = inspection.notes
    assert "train_normal_0001" in note
    assert "times full scale (floats that hold integers?)" in note


def test_a_sound_data_set_has_no_notes(tmp_path):
    (tmp_path / "fan" / "train").mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        soundfile.write(tmp_path / name, np.random.default_rng(seed).uniform(-0.5, 0.5, 16_000), 16_000)
    found = inspect(tmp_path, index_of(NAMES))
    assert found.notes == found.problems == []


def write_machine(root, change):
    """Training and test clips of a fan, each written as `change(name, samples)` says: samples, rate, format."""
    names = [f"fan/train/section_00_source_train_normal_{i:04d}_noAttribute.wav" for i in range(4)]
    for condition in ("normal", "anomaly"):
        names += [f"fan/test/section_00_source_test_{condition}_{i:04d}_noAttribute.wav" for i in range(3)]
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        samples, rate, subtype = change(name, np.random.default_rng(seed).uniform(-0.5, 0.5, 16_000))
        soundfile.write(root / name, samples, rate, subtype=subtype)
    return inspect(root, index_of(names))


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (
            lambda name, x: (x, 48_000 if "anomaly" in name else 16_000, "PCM_16"),
            "fan: sampling rates differ: 16000 Hz in 7 clips, 48000 Hz in 3 clips (all of them test anomaly); "
            "the recording, not the machine, tells which test clips are anomalies",
        ),
        (
            lambda name, x: (np.stack([x, x[::-1]], 1) if "train" in name else x, 16_000, "PCM_16"),
            "fan: channels differ: 1 in 6 clips, 2 in 4 clips (all of them train)",
        ),
        (
            lambda name, x: (x[: 8_000 if "train_normal_0001" in name else None], 16_000, "PCM_16"),
            "fan: lengths differ: 1.0 s in 9 clips, 0.5 s in 1 clips (all of them train)",
        ),
    ],
)
def test_formats_that_differ_within_a_machine_are_noted(tmp_path, change, note):
    assert note in write_machine(tmp_path, change).notes
