import numpy as np
import pytest

from branches.audio.cache import in_memory
from branches.audio.formats import formats_of, read_formats, write_formats
from branches.data.dataset import index_of

NAMES = [f"fan/train/section_00_source_train_normal_{i:04d}_noAttribute.wav" for i in range(3)]
RNG = np.random.default_rng(0)


def noise(seconds=1.0, channels=2):
    return RNG.normal(0, 0.05, (round(16_000 * seconds), channels)).astype(np.float32)


@pytest.fixture
def machine():
    return formats_of(in_memory([noise(), noise(), noise(1.2)]), index_of(NAMES))["fan"]


def test_the_formats_of_a_runs_clips_are_kept_in_its_folder(tmp_path, machine):
    write_formats(tmp_path, in_memory([noise(), noise(), noise(1.2)]), index_of(NAMES))
    assert read_formats(tmp_path) == {"fan": machine}
    assert machine.seconds == (1.0, 1.2)
    assert machine.channels == (2,)
    (tmp_path / "formats.json").write_text("{")
    assert read_formats(tmp_path) == {}


@pytest.mark.parametrize(
    ("samples", "difference"),
    [
        (noise(0.25), "0.25 s long, those 1 to 1.2 s"),
        (noise(4), "4 s long, those 1 to 1.2 s"),
        (noise(1, 1), "of 1 channels, those of 2"),
        (noise(), ""),
        (noise(0.8), ""),
    ],
)
def test_what_a_recording_has_unlike_the_machines_clips(machine, samples, difference):
    assert machine.differences(samples) == difference


def test_the_clips_of_two_sections_are_of_all_their_lengths_and_channels(machine):
    other = formats_of(in_memory([noise(4, 1)]), index_of(NAMES[:1]))["fan"]
    both = machine.joined(other)
    assert (both.seconds, both.channels) == ((1.0, 4.0), (1, 2))
    assert other.joined(machine) == both
