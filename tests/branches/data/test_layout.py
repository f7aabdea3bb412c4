import os
import re

import pytest

from branches.data.layout import clip_paths
from scoring.errors import InputError

CLIP = "section_00_source_train_normal_0000_noAttribute.wav"


@pytest.fixture
def root(tmp_path):
    touch(tmp_path / "data" / "set" / "pump" / "train" / CLIP)
    return tmp_path / "data" / "set"


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.mark.parametrize(
    ("path", "warning"),
    [
        ("fan/train/normal/a.wav", "fan: missing from the data set: .* but 1 in train/normal; move them there"),
        ("fan/a.wav", r"fan: missing from the data set: .* but 1 in \."),
        ("fan/train/a.flac", r"fan: missing from the data set: .* but 1 in train \(\*\.flac\)"),
        ("fan/train/readme.txt", "fan: missing from the data set: no recording in it"),
        ("pump/dev/a.wav", "pump: recordings that are not read: 1 in dev; only .*wav in train, test, .* are"),
        ("pump/test/a.WAV", r"pump: recordings that are not read: 1 in test \(\*\.WAV\)"),
        ("pump/supplemental/noise.wav", None),
        ("docs/readme.md", None),
        (".cache/train/a.wav", None),
        (f"pump/train/._{CLIP}", None),
    ],
)
def test_machines_and_recordings_that_are_not_read_are_named(root, path, warning, caplog):
    touch(root / path)
    assert clip_paths(root) == [f"pump/train/{CLIP}"]
    assert bool(caplog.records) == bool(warning)
    assert warning is None or re.search(warning, caplog.records[0].getMessage())


@pytest.mark.parametrize("path", [b"pump/train/m\xfcller.wav", b"l\xfcfter/train/a.wav"])
def test_a_name_that_is_not_utf8_is_named(root, path):
    file = os.path.join(os.fsencode(root), path)
    os.makedirs(os.path.dirname(file), exist_ok=True)
    open(file, "wb").close()
    with pytest.raises(InputError, match=r"\\xfc.*: the name is not UTF-8; rename it"):
        clip_paths(root)


def test_a_folder_that_is_no_data_set_says_why_and_where_one_is(root):
    below = f"not a data set: .*; a data set lies below it: .*{root}"
    for folder, message in (
        (root.parent.parent, below),
        (root.parent, below),
        (root / "pump", "this is a machine's own folder, give its parent"),
        (root / "nowhere", "nowhere: no such folder; give the folder that holds one folder per machine"),
    ):
        with pytest.raises(InputError, match=message):
            clip_paths(folder)
    (root / "pump" / "train").rename(root / "pump" / "Train")
    with pytest.raises(InputError, match=r"not a data set: .*; .*pump: missing from the data set: .*1 in Train"):
        clip_paths(root)
