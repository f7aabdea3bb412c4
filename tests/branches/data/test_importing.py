import numpy as np
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st

from branches.audio import read_clip
from branches.data.dataset import counts, read_index
from branches.data.importing import ORIGINALS, import_recordings, original_names, originals
from scoring.errors import InputError


def record(path, seconds=1.0, rate=44_100, channels=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(0).normal(size=(int(seconds * rate), channels)), rate)
    return path


def test_a_folder_becomes_a_data_set(tmp_path):
    first, *_ = [record(tmp_path / "in" / f"Press läuft {i}.WAV", 2.5) for i in range(4)]
    record(tmp_path / "in" / "target" / "x.wav")
    record(tmp_path / "in" / "Anomaly" / "damage.flac", 1.2, 48_000, 1)
    record(tmp_path / "in" / "abnormal" / "damage.wav")
    record(tmp_path / "in" / "test" / "normal" / "good.wav", 0.4)
    record(tmp_path / "in" / "test" / "who knows.wav", 1.0, 16_000)
    (tmp_path / "in" / "._good.wav").write_bytes(b"what macOS leaves")
    clips, dropped = import_recordings(originals(tmp_path / "in", "press"), tmp_path / "out", 1.0)
    assert (clips, round(dropped, 6)) == (13, 2.2)
    index = read_index(tmp_path / "out")
    kinds = {"train source": 8, "train target": 1, "test source anomaly": 2, "test source normal": 1}
    assert counts(index) == {"press": {"sections": 1, **kinds, "test hidden hidden": 1}}
    names = original_names(tmp_path / "out")
    assert set(names) == {*index["path"].to_pylist()}
    assert original_names(tmp_path / "in") == {}
    (second,) = [clip for clip, name in names.items() if name == f"{first}, from 1 s"]
    assert f"{second},{first},1.0,2.0\n" in (tmp_path / "out" / ORIGINALS).read_text()
    assert np.array_equal(read_clip(tmp_path / "out" / second), read_clip(first)[16_000:32_000])


def test_a_manifest_says_what_is_known_and_folders_name_machines(tmp_path):
    for name in ("a.wav", "b.wav", "c.wav", "set/fan/monday/x.wav", "set/train/pump/x.wav", "set/.hidden/x.wav"):
        record(tmp_path / name)
    (tmp_path / "list.csv").write_text(
        "\ufeffpath,machine,section,split,condition,domain,attributes\n"
        "a.wav,fan,2,train,,target,spd 1_load_2\nb.wav,fan,2,,anomaly,,\nc.wav,,,test,,,\n"
    )
    import_recordings(originals(tmp_path / "list.csv", "pump"), tmp_path / "out")
    assert sorted(original_names(tmp_path / "out")) == [
        "fan/test/section_02_source_test_anomaly_0000_noAttribute.wav",
        "fan/train/section_02_target_train_normal_0000_spd-1_load_2.wav",
        "pump/test/section_00_0000_noAttribute.wav",
    ]
    assert [(o.machine, o.path.name) for o in originals(tmp_path / "set")] == [("fan", "x.wav"), ("pump", "x.wav")]


def test_a_manifests_mistakes_are_told(tmp_path):
    for text, message in (
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
    ):
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
        ("in", "in", "in: exists already; give another folder, or remove it"),
        ("none", "out", "none: no such folder or manifest"),
    ):
        with pytest.raises(InputError, match=message):
            import_recordings(originals(tmp_path / source, "fan"), tmp_path / out)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
