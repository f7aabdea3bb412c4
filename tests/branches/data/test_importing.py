import csv

import numpy as np
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st

from branches.audio import read_clip
from branches.data.dataset import read_index
from branches.data.importing import ORIGINALS, import_recordings, original_names, originals
from scoring.errors import InputError


def record(path, seconds=1.0, rate=44_100, channels=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(0).normal(size=(int(seconds * rate), channels)), rate)
    return path


def test_a_folder_becomes_a_data_set(tmp_path):
    for name, seconds in (
        *((f"Press läuft {i}.WAV", 2.5) for i in range(4)),
        *(("target/x.wav", 1.0), ("Anomaly/damage.flac", 1.2), ("abnormal/damage.wav", 1.0)),
        *(("test/normal/good.wav", 0.4), ("test/who knows.wav", 1.0)),
    ):
        record(tmp_path / "in" / name, seconds)
    (tmp_path / "in" / "._good.wav").write_bytes(b"what macOS leaves")
    clips, dropped = import_recordings(originals(tmp_path / "in", "press"), tmp_path / "out", 1.0)
    assert (clips, round(dropped, 6)) == (13, 2.2)
    rows = read_index(tmp_path / "out").to_pylist()
    assert {row["machine"] for row in rows} == {"press"}
    kinds = [(row["split"], row["domain"], row["condition"]) for row in rows]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        ("train", "source", "normal"): 8,
        ("train", "target", "normal"): 1,
        ("test", "source", "anomaly"): 2,
        ("test", "source", "normal"): 1,
        ("test", None, None): 1,
    }
    names = original_names(tmp_path / "out")
    assert set(names) == {row["path"] for row in rows}
    assert sum("Press läuft 2.WAV, from 1 s" in name for name in names.values()) == 1
    assert original_names(tmp_path / "in") == {}


def test_a_clip_sounds_as_the_part_of_the_recording(tmp_path):
    path = record(tmp_path / "in" / "a.wav", 2.0)
    import_recordings(originals(tmp_path / "in", "fan"), tmp_path / "out", 0.5)
    with open(tmp_path / "out" / ORIGINALS, newline="") as file:
        second = list(csv.DictReader(file))[1]
    assert (second["recording"], second["start"], second["end"]) == (str(path), "0.5", "1.0")
    assert np.array_equal(read_clip(tmp_path / "out" / second["clip"]), read_clip(path)[8_000:16_000])


def test_a_manifest_and_folders_say_what_is_known(tmp_path):
    for path in ("a.wav", "b.wav", "c.wav", "fan/monday/x.wav", "train/pump/x.wav", ".hidden/x.wav"):
        record(tmp_path / "in" / path)
    manifest = tmp_path / "in" / "list.csv"
    manifest.write_text(
        "\ufeffpath,machine,section,split,condition,domain,attributes\n"
        "a.wav,fan,2,train,,target,spd 1_load_2\nb.wav,fan,2,,anomaly,,\nc.wav,,,test,,,\n"
    )
    import_recordings(originals(manifest, "pump"), tmp_path / "out")
    assert sorted(original_names(tmp_path / "out")) == [
        "fan/test/section_02_source_test_anomaly_0000_noAttribute.wav",
        "fan/train/section_02_target_train_normal_0000_spd-1_load_2.wav",
        "pump/test/section_00_0000_noAttribute.wav",
    ]
    assert [o.machine for o in originals(tmp_path / "in", "valve")] == ["valve"] * 3 + ["fan", "pump"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file\na.wav\n", "no column path; the columns are path, machine, section, "),
        ("path,colour\na.wav,red\n", "unknown column colour"),
        ("path\na.wav\n", "line 2: of which machine"),
        ("path,machine,split\na.wav,fan,eval\n", "line 2: split is 'eval'; it must be train or test, or empty"),
        ("path,machine,domain\na.wav,fan,moon\n", "domain is 'moon'; it must be source or target"),
        ("path,machine,split,condition\na.wav,fan,train,anomaly\n", "an anomaly for training"),
        ("path,machine,section\na.wav,fan,x\n", "section is 'x'; it must be a whole number"),
        ("path,machine\na.wav,a/b\n", "machine 'a/b' cannot be a folder's name"),
        ("path,machine\na.wav,.b\n", "machine '.b' cannot be a folder's name"),
        ("path,machine\n", r"no recordings in it \(\*\.wav, "),
    ],
)
def test_a_manifests_mistakes_are_told(tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(InputError, match=rf"^{tmp_path}/list\.csv.* {message}"):
        originals(tmp_path / "list.csv")


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=80), st.sampled_from([b"", b"path,machine\n", b"path,machine,section\na.wav,fan,"]))
@example(b"\0.wav,fan", b"path,machine\n")
@example(b"9" * 5000, b"path,machine,section\na.wav,fan,")
def test_a_manifest_of_any_bytes_is_named_in_one_line(tmp_path_factory, content, header):
    manifest = tmp_path_factory.getbasetemp() / "any.csv"
    manifest.write_bytes(header + content)
    with pytest.raises(InputError, match=rf"^{manifest.parent}[^\n]*$"):
        import_recordings(originals(manifest), manifest.with_name("never"))
    manifest.rename(manifest.with_name(ORIGINALS))
    assert original_names(manifest.parent) == {}


def test_nothing_is_left_of_an_import_that_fails(tmp_path):
    record(tmp_path / "in" / "a.wav")
    (tmp_path / "in" / "b.wav").write_bytes(b"RIFF")
    for source, out, message in (
        ("in", "out", r"b\.wav"),
        ("in", "in", "exists already"),
        ("none", "x", "no such folder"),
    ):
        with pytest.raises(InputError, match=message):
            import_recordings(originals(tmp_path / source, "fan"), tmp_path / out)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
