import os
import re

import pytest

from branches.data.layout import clip_paths
from scoring.errors import InputError

CLIP = "section_00_source_train_normal_0000_noAttribute.wav"


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.fixture
def root(tmp_path):
    touch(tmp_path / "data" / "set" / "pump" / "train" / CLIP)
    return tmp_path / "data" / "set"


@pytest.mark.parametrize(
    ("path", "warning"),
    [
        ("fan/train/normal/a.wav", "fan: missing from the data set: .* but 1 in train/normal; move them there"),
        ("fan/Train/a.wav", "fan: missing from the data set: .* but 1 in Train"),
        ("fan/a.wav", r"fan: missing from the data set: .* but 1 in \."),
        ("fan/train/a.flac", r"fan: missing from the data set: .* but 1 in train \(\*\.flac\)"),
        ("fan/train/readme.txt", "fan: missing from the data set: no recording in it"),
        ("pump/dev/a.wav", "pump: recordings that are not read: 1 in dev"),
        ("pump/test/a.WAV", r"pump: recordings that are not read: 1 in test \(\*\.WAV\)"),
        ("pump/test/inner/a.wav", "pump: recordings that are not read: 1 in test/inner"),
    ],
)
def test_machines_and_recordings_that_are_not_read_are_named(root, path, warning, caplog):
    touch(root / path)
    assert clip_paths(root) == [f"pump/train/{CLIP}"]
    (record,) = caplog.records
    assert re.search(warning, record.getMessage())


@pytest.mark.parametrize(
    "path", ["pump/supplemental/noise.wav", "docs/readme.md", ".cache/train/a.wav", f"pump/train/._{CLIP}"]
)
def test_what_is_no_recording_of_the_set_needs_no_word(root, path, caplog):
    touch(root / path)
    assert clip_paths(root) == [f"pump/train/{CLIP}"]
    assert caplog.text == ""


@pytest.mark.parametrize("path", [b"pump/train/m\xfcller.wav", b"l\xfcfter/train/a.wav"])
def test_a_name_that_is_not_utf8_is_named(root, path):
    file = os.path.join(os.fsencode(root), path)
    os.makedirs(os.path.dirname(file), exist_ok=True)
    open(file, "wb").close()
    with pytest.raises(InputError, match=r"\\xfc.*: the name is not UTF-8; rename it"):
        clip_paths(root)


def test_a_folder_that_is_no_data_set_says_where_one_is(root):
    for level in (root.parent.parent, root.parent):
        with pytest.raises(InputError, match=f"not a data set: .*; a data set lies below it: .*{root}"):
            clip_paths(level)
    with pytest.raises(InputError, match="this is a machine's own folder, give its parent"):
        clip_paths(root / "pump")
    with pytest.raises(InputError, match="no such folder"):
        clip_paths(root / "nowhere")


def test_a_set_of_which_nothing_is_read_says_why(tmp_path):
    touch(tmp_path / "fan" / "Train" / "a.wav")
    with pytest.raises(InputError, match=r"not a data set: .*; .*fan: missing from the data set: .*1 in Train"):
        clip_paths(tmp_path)
