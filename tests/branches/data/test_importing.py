"""Recordings as people have them, in the layout afterwards."""

import csv

import numpy as np
import pytest
import soundfile

from branches.audio import read_clip
from branches.data.dataset import read_index
from branches.data.importing import ORIGINALS, import_recordings, original_names, originals
from scoring.errors import InputError


def record(path, seconds=1.0, rate=44_100, channels=2, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.1 * np.random.default_rng(seed).normal(size=(int(seconds * rate), channels))
    soundfile.write(path, samples, rate)
    return path


def test_a_folder_becomes_a_data_set(tmp_path):
    for i in range(4):
        record(tmp_path / "in" / f"Press läuft {i}.WAV", 2.5, seed=i)
    record(tmp_path / "in" / "Anomaly" / "damage.flac", 1.2, 48_000, 1)
    record(tmp_path / "in" / "test" / "normal" / "good.wav", 0.4)
    record(tmp_path / "in" / "test" / "who knows.wav", 1.0, 16_000)
    (tmp_path / "in" / "._good.wav").write_bytes(b"what macOS leaves")
    clips, dropped = import_recordings(originals(tmp_path / "in", "press"), tmp_path / "out", 1.0)
    assert (clips, round(dropped, 6)) == (11, 2.2)
    rows = read_index(tmp_path / "out").to_pylist()
    kinds = {(row["condition"], row["domain"]) for row in rows if row["split"] == "test"}
    assert kinds == {("anomaly", "source"), ("normal", "source"), (None, None)}
    train = [row for row in rows if row["split"] == "train"]
    assert len(train) == 8
    assert {row["machine"] for row in rows} == {"press"}
    names = original_names(tmp_path / "out")
    assert set(names) == {row["path"] for row in rows}
    assert sum("Press läuft 2.WAV, from 1 s" in name for name in names.values()) == 1


def test_a_clip_sounds_as_the_part_of_the_recording(tmp_path):
    path = record(tmp_path / "in" / "a.wav", 2.0)
    import_recordings(originals(tmp_path / "in", "fan"), tmp_path / "out", 0.5)
    with open(tmp_path / "out" / ORIGINALS, newline="") as file:
        second = list(csv.DictReader(file))[1]
    clip = read_clip(tmp_path / "out" / second["clip"])
    assert (second["start"], second["end"]) == ("0.5", "1.0")
    assert np.array_equal(clip, read_clip(path)[8_000:16_000])


def test_a_manifest_says_what_is_known(tmp_path):
    for name in "abc":
        record(tmp_path / f"{name}.wav")
    (tmp_path / "list.csv").write_text(
        "path,machine,section,split,condition,domain,attributes\n"
        "a.wav,fan,2,train,,target,spd 1_load_2\nb.wav,fan,2,,anomaly,,\nc.wav,pump,,test,,,\n"
    )
    import_recordings(originals(tmp_path / "list.csv"), tmp_path / "out")
    assert sorted(original_names(tmp_path / "out")) == [
        "fan/test/section_02_source_test_anomaly_0000_noAttribute.wav",
        "fan/train/section_02_target_train_normal_0000_spd-1_load_2.wav",
        "pump/test/section_00_0000_noAttribute.wav",
    ]


def test_folders_name_machines(tmp_path):
    record(tmp_path / "fan" / "monday" / "x.wav")
    record(tmp_path / "train" / "pump" / "x.wav")
    assert sorted(o.machine for o in originals(tmp_path)) == ["fan", "pump"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file\na.wav\n", "no column path"),
        ("path,colour\na.wav,red\n", "unknown column colour"),
        ("path\na.wav\n", "line 2: of which machine"),
        ("path,machine,split\na.wav,fan,eval\n", "split is 'eval'; it must be train or test"),
        ("path,machine,split,condition\na.wav,fan,train,anomaly\n", "an anomaly for training"),
        ("path,machine,section\na.wav,fan,x\n", "must be a whole number"),
        ("path,machine\na.wav,a/b\n", "cannot be a folder's name"),
        ("path,machine\n", "no recordings in it"),
    ],
)
def test_a_manifests_mistakes_are_told(tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        originals(tmp_path / "list.csv")


def test_nothing_is_left_of_an_import_that_fails(tmp_path):
    record(tmp_path / "in" / "a.wav")
    (tmp_path / "in" / "b.wav").write_bytes(b"RIFF")
    with pytest.raises(InputError, match=r"b\.wav"):
        import_recordings(originals(tmp_path / "in", "fan"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    with pytest.raises(InputError, match="exists already"):
        import_recordings(originals(tmp_path / "in", "fan"), tmp_path / "in")
    with pytest.raises(InputError, match="no such folder"):
        originals(tmp_path / "none")
