"""Clips that can be used, but look wrong."""

import numpy as np
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


def test_a_sound_data_set_has_no_notes(tmp_path):
    (tmp_path / "fan" / "train").mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        soundfile.write(tmp_path / name, np.random.default_rng(seed).uniform(-0.5, 0.5, 16_000), 16_000)
    found = inspect(tmp_path, index_of(NAMES))
    assert found.notes == found.problems == []
