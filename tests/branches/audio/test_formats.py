import numpy as np

from branches.audio.cache import in_memory
from branches.audio.formats import Format, formats_of, read_formats, write_formats
from branches.data.dataset import index_of

MACHINE = Format(seconds=(1.0, 1.2), channels=(2,))


def silence(seconds, channels=2):
    return np.zeros((round(16_000 * seconds), channels), np.float32)


def test_the_formats_of_a_runs_training_clips_are_kept_in_its_folder(tmp_path):
    names = [f"fan/train/section_00_source_train_normal_{i:04d}_noAttribute.wav" for i in range(3)]
    index = index_of(["fan/test/section_00_0000.wav", *names, names[0].replace("fan", "pump")])
    clips = in_memory([silence(s, c) for s, c in ((9, 1), (1.2, 2), (1, 2), (1.1, 2), (4, 1))])
    assert formats_of(clips, index) == {"fan": MACHINE, "pump": Format(seconds=(4.0, 4.0), channels=(1,))}
    write_formats(tmp_path, clips, index)
    assert read_formats(tmp_path) == formats_of(clips, index)
    for damaged in ("{", '{"fan": 1}'):
        (tmp_path / "formats.json").write_text(damaged)
        assert read_formats(tmp_path) == read_formats(tmp_path / "absent") == {}


def test_what_a_recording_has_unlike_the_machines_clips():
    assert MACHINE.differences(silence(0.66)) == "0.66 s long, those 1 to 1.2 s"
    assert MACHINE.differences(silence(1.81, 1)) == "1.81 s long, those 1 to 1.2 s; of 1 channels, those of 2"
    assert MACHINE.differences(silence(0.67)) == MACHINE.differences(silence(1.79)) == ""


def test_two_sections_together_have_all_their_lengths_and_channels():
    other, both = Format(seconds=(0.5, 1.1), channels=(1, 2)), Format(seconds=(0.5, 1.2), channels=(1, 2))
    assert other.joined(MACHINE) == MACHINE.joined(other) == both
