import gzip
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st

from branches.audio import read_clip
from branches.data.dataset import Dataset, class_labels, counts, index_of, noise_index, parse_path, read_index
from branches.data.importing import ORIGINALS, import_recordings, original_names, originals
from branches.data.inspection import inspect
from branches.data.layout import clip_paths
from branches.spec import BranchSpec
from scoring.clip_names import parse_clip_name
from scoring.errors import InputError

TRAIN = "{}/train/section_00_source_train_normal_{:04d}_{}.wav"
TEST = "{}/test/section_00_{}_test_{}_{:04d}_noAttribute.wav"


def test_all_names_of_2026_are_read_and_can_be_put_together_again():
    """Nothing of a name is lost or invented: machine, folder and name follow from the parsed fields."""
    with gzip.open(Path(__file__).parents[1] / "fixtures" / "dcase2026_names.txt.gz", "rt") as file:
        names = file.read().split()
    assert index_of(names).num_rows == 14_400
    for path in names:
        clip, parts = parse_path(path), parse_clip_name(path.split("/")[2])
        name = parts.file_name(int(re.search(r"\d{4}", clip.clip)[0]))
        if clip.condition is None:  # the organisers hide the attributes, too
            name = name.replace("_noAttribute", "")
        assert f"{clip.machine}/{clip.split}/{name}" == path


def test_names_of_all_years_are_read_and_others_named():
    for path, said in (
        ("car/train/section_00_target_train_normal_0007_mic_2_mic_1.wav", "0 train target normal mic=2 mic=1"),
        ("fan/test/section_02_source_test_anomaly_0012_m-n_W.wav", "2 test source anomaly m-n=W"),
        ("fan/source_test/section_01_source_test_normal_0003_1_W_ambient.wav", "1 test source normal 1=W =ambient"),
        ("fan/target_test/section_03_0003.wav", "3 test target None"),
        ("fan/target_test/section_03_source_test_normal_0003.wav", "3 test source normal"),
        ("slider/test/section_05_test_0199.wav", "5 test None None"),
        ("pump/train/normal_id_06_00000933.wav", "6 train source normal"),
        ("pump/test/anomaly_id_00_00000001.wav", "0 test source anomaly"),
        ("pump/test/id_01_00000001.wav", "1 test source None"),
    ):
        clip = parse_path(path)
        attributes = [f"{key}={value}" for key, value in clip.attributes]
        assert " ".join(map(str, [clip.section, clip.split, clip.domain, clip.condition, *attributes])) == said
        assert (clip.machine, clip.clip, clip.path) == (path.split("/")[0], path.split("/")[2], path)
    for path, message in (
        ("fan/train/section_00_train_normal_0000.wav", "the name of a training clip must say source or target"),
        ("fan/train/noise.wav", "not a name of the challenge, .*`tutti data import` takes recordings of any name"),
        ("fan/dev/section_00_0000.wav", "the folder is none of train, test, source_test, target_test"),
        ("fan/test/section_00_source_train_normal_0000_noAttribute.wav", "the name says train, the folder says test"),
        (
            "fan/train/section_00_source_train_anomaly_0000.wav",
            "an anomaly among the training clips; training data are",
        ),
    ):
        with pytest.raises(InputError, match=f"^{path}: {message}"):
            parse_path(path)


@pytest.fixture
def root(tmp_path):
    """A rotor and a pump, three training and three test clips each, of 20 kB that sound of nothing."""
    for machine, attributes in (("rotor", "spd_{}"), ("pump", "noAttribute")):
        paths = [TRAIN.format(machine, i, attributes.format(i // 2)) for i in range(3)]
        paths += [TEST.format(machine, *cell, 0) for cell in (("source", "normal"), ("target", "anomaly"))]
        for path in (*paths, f"{machine}/test/section_00_0001.wav"):
            touch(tmp_path / "data" / "set" / path).write_bytes(bytes(20_000))
    return tmp_path / "data" / "set"


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_a_folder_is_read(root):
    index = read_index(root)
    each = {"train source": 3, "test source normal": 1, "test target anomaly": 1, "test hidden hidden": 1}
    assert counts(index) == {machine: {"sections": 1, **each} for machine in ("pump", "rotor")}
    assert clip_paths(root) == sorted(path.relative_to(root).as_posix() for path in root.rglob("*.wav"))
    assert {*clip_paths(root)} == {*index["path"].to_pylist()}
    labels, names = class_labels(index.filter([row["split"] == "train" for row in index.to_pylist()]))
    assert labels.tolist() == [0, 0, 0, 1, 1, 2]
    assert names == ["pump/section_00", "rotor/section_00/spd=0", "rotor/section_00/spd=1"]


def test_a_fingerprint_is_of_names_and_contents_and_that_of_a_training_of_its_clips_and_noise_alone(root):
    noise = {"noise": {"source": "supplemental"}}
    specs = [None, BranchSpec(), BranchSpec(augmentation=noise), BranchSpec(strategy="frozen")]

    def fingerprints():
        data = Dataset.read(root)
        return np.array([data.fingerprint, *(data.training_fingerprint(spec) for spec in specs)])

    before = fingerprints()
    root = root.rename(root.with_name("moved"))
    assert (fingerprints() == before).all()
    (root / TEST.format("rotor", "source", "normal", 0)).unlink()
    assert (fingerprints() != before).tolist() == [True, False, False, False, False]
    touch(root / "rotor" / "supplemental" / "clean_0.wav")
    touch(root / "rotor" / "supplemental" / "section_00_noise_0.wav")
    assert noise_index(root).to_pylist() == [{"machine": "rotor", "path": "rotor/supplemental/section_00_noise_0.wav"}]
    assert (fingerprints() != before).tolist() == [True, False, False, True, False]
    wav = root / TRAIN.format("rotor", 0, "spd_0")
    for position in (0, 11_000, 19_999, 20_000, "name"):
        before, content = fingerprints(), bytearray(wav.read_bytes())
        if position == "name":
            wav.rename(root / TRAIN.format("rotor", 9, "spd_0"))
        else:
            content[position : position + 1] = b"x"
            wav.write_bytes(content)
        assert (fingerprints() != before).tolist() == [True, True, True, True, False]


@pytest.mark.parametrize(
    ("path", "warning"),
    [
        ("fan/train/normal/a.wav", "fan: missing from the data set: .* but 1 in train/normal; move them there"),
        ("fan/train/a.flac", r"fan: missing from the data set: .* but 1 in train \(\*\.flac\)"),
        ("fan/train/readme.txt", "fan: missing from the data set: no recording in it"),
        ("pump/dev/a.wav", "pump: recordings that are not read: 1 in dev; only .*wav in train, test, .* are"),
        ("pump/test/a.WAV", r"pump: recordings that are not read: 1 in test \(\*\.WAV\)"),
        ("pump/supplemental/noise.wav", None),
        ("docs/readme.md", None),
        (".cache/train/a.wav", None),
        (TRAIN.format("pump", 0, "noAttribute").replace("section", "._section"), None),
    ],
)
def test_machines_and_recordings_that_are_not_read_are_named(root, path, warning, caplog):
    before = clip_paths(root)
    touch(root / path)
    assert clip_paths(root) == before
    assert re.search(warning or "^$", caplog.text)


def test_what_makes_no_data_set_is_named(root):
    clip = root / TEST.format("pump", "source", "normal", 0)
    for name, message in (
        (
            f"pump/source_test/{clip.name}",
            f"pump/.*{clip.name}: another folder of this machine holds a clip of the same",
        ),
        (os.fsdecode(b"pump/train/m\xfcller.wav"), r"\\xfc.*: the name is not UTF-8; rename it"),
        (os.fsdecode(b"l\xfcfter/train/a.wav"), r"\\xfc.*: the name is not UTF-8; rename it"),
    ):
        path = touch(root / name)
        with pytest.raises(InputError, match=message):
            read_index(root)
        path.unlink()
    shutil.rmtree(root / os.fsdecode(b"l\xfcfter"))  # what is logged of it no report of a test can hold
    clip.unlink()
    clip.symlink_to("nowhere.wav")
    with pytest.raises(InputError, match=rf"^{clip}: cannot be read \(No such file or directory\); replace or remove"):
        Dataset.read(root)
    (root / TRAIN.format("pump", 0, "noAttribute")).unlink()
    with pytest.raises(InputError, match="machine pump section 0 has 2 training clips; scoring needs at least 3"):
        read_index(root)
    new = touch(root.parent / "new" / "fan" / "Train" / "a.wav").parents[2]
    for folder, message in (
        (root.parents[1], f"not a data set: .*; a data set lies below it: .*{root}"),
        (root.parent, f"not a data set: .*; a data set lies below it: .*{root}"),
        (root / "pump", "this is a machine's own folder, give its parent"),
        (root / "nowhere", "nowhere: no such folder; give the folder that holds one folder per machine"),
        (new, r"not a data set: .*; .*fan: missing from the data set: .*1 in Train"),
    ):
        with pytest.raises(InputError, match=message):
            clip_paths(folder)


def test_an_inspection_tells_what_cannot_be_used_and_what_looks_wrong(tmp_path):
    noise, read = np.random.default_rng(0).uniform(-0.5, 0.5, (10, 16_000)), []
    paths = [TRAIN.format("fan", i, "noAttribute") for i in range(4)]
    paths += [TEST.format("fan", "source", condition, i) for condition in ("normal", "anomaly") for i in range(3)]

    def inspected(changed, rate=16_000):
        for i, path in enumerate(paths):
            soundfile.write(touch(tmp_path / path), changed.get(i, noise[i]), rate if i in changed else 16_000, "FLOAT")
        return inspect(tmp_path, index_of(paths), read.append)

    sound = inspected({})
    assert sound.notes == sound.problems == []
    assert sound.formats == {"fan": {"sampling rates": "16000 Hz", "channels": "1", "lengths": "1.0 s"}}
    assert read == [1] * 10
    rates = inspected({i: noise[i].repeat(3) for i in (7, 8, 9)}, 48_000)
    assert rates.notes == [
        "fan: sampling rates differ: 16000 Hz in 7 clips, 48000 Hz in 3 clips (all of them test anomaly); "
        "the recording, not the machine, tells which test clips are anomalies"
    ]
    channels = inspected({i: np.stack([noise[i], noise[0]], 1) for i in range(4)})
    assert channels.notes == ["fan: channels differ: 1 in 6 clips, 2 in 4 clips (all of them train)"]
    lengths = inspected({1: noise[1, :8_000]})
    assert lengths.notes == ["fan: lengths differ: 1.0 s in 9 clips, 0.5 s in 1 clips (all of them train)"]
    wrong = inspected({0: noise[0, :1_000], 1: noise[1] * 5, 2: noise[3], 4: np.full(16_000, 0.3)})
    (problem,) = wrong.problems
    assert problem.endswith(f"{paths[0]}: 0.062 s is shorter than one patch (0.175 s); remove it")
    assert wrong.notes == [
        f"{paths[4]}: nothing is heard on channel 0",
        f"{paths[1]}: samples up to 2.5 times full scale (floats that hold integers?)",
        f"{paths[3]}: the same recording as {paths[2]}",
    ]


def record(path, seconds=1.0, rate=44_100, channels=2):
    soundfile.write(touch(path), 0.1 * np.random.default_rng(0).normal(size=(int(seconds * rate), channels)), rate)
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
