"""Data sets: names and folders, what is odd in them, imported, fetched and synthetic ones."""

import gzip
import hashlib
import io
import os
import re
import unicodedata
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from branches import downloads
from branches.audio import read_clip
from branches.data import fetching
from branches.data.dataset import Dataset, class_labels, counts, index_of, noise_index, parse_path, read_index
from branches.data.folder_names import labels_of
from branches.data.importing import ORIGINALS, import_recordings, original_names, originals
from branches.data.inspection import inspect
from branches.data.layout import clip_paths, files, find
from branches.data.synthetic import DEFAULT, DEMO, SyntheticClip, SyntheticSize, render, write_dataset
from branches.data.synthetic_machines import MACHINES, RATE, Operation
from branches.spec import BranchSpec
from scoring.clip_names import parse_clip_name
from scoring.errors import InputError
from tests.commands import tutti_here
from tests.web import serving

TRAIN = "{}/train/section_00_source_train_normal_{:04d}_{}.wav"
TEST = "{}/test/section_00_{}_test_{}_{:04d}_noAttribute.wav"
TINY = SyntheticSize(train_source=4, train_target=2, test_per_cell=1, seconds=1.0)
# Deviations of an anomalous clip, near and far, then of no faint fault; products with noise of its sound and faults.
SOUNDS = {
    "rotor": [4.0997, 2.6502, 4.1068, 2.6522, -0.4649, -0.4248, 0.1203, 0.1629, -0.1806],
    "valve": [2.5401, 1.6786, 2.5451, 1.6801, 0.6498, -0.4874, -0.5424, 0.3411, -0.6779, 0.0494],
    "gearbox": [4.1135, 1.8742, 4.1329, 1.8835, -1.0512, -0.8494, 0.2993, 0.0715, -0.3476, 0.7776],
    "pump": [7.2997, 4.0514, 7.3096, 4.055, 2.5490, -0.2206, -0.0898, -0.0623, 0.3197],
    "slider": [5.7631, 3.1064, 5.5387, 3.0089, 0.8169, -0.0349, 0.4002, 0.1409, -0.0859, -0.4631],
}


def test_names_of_all_years_are_read_and_can_be_put_together_again_and_others_are_named():
    names = gzip.decompress((Path(__file__).parents[1] / "fixtures" / "dcase2026_names.txt.gz").read_bytes())
    assert index_of(names.decode().split()).num_rows == 14_400
    for path in names.decode().split():
        clip, parts = parse_path(path), parse_clip_name(path.split("/")[2])
        name = parts.file_name(int(re.search(r"\d{4}", clip.clip)[0]))
        if clip.condition is None:  # the organisers hide the attributes, too
            name = name.replace("_noAttribute", "")
        assert f"{clip.machine}/{clip.split}/{name}" == path
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
        ("fan/train/section_00_source_train_anomaly_0000.wav", "an anomaly among the training clips; training data"),
    ):
        with pytest.raises(InputError, match=f"^{path}: {message}"):
            parse_path(path)


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.fixture
def root(tmp_path):
    """A rotor and a pump, three training and three test clips each, of 20 kB that sound of nothing."""
    for machine, attributes in (("rotor", "spd_{}"), ("pump", "noAttribute")):
        paths = [TRAIN.format(machine, i, attributes.format(i // 2)) for i in range(3)]
        paths += [TEST.format(machine, *cell, 0) for cell in (("source", "normal"), ("target", "anomaly"))]
        for path in (*paths, f"{machine}/test/section_00_0001.wav"):
            touch(tmp_path / "data" / "set" / path).write_bytes(bytes(20_000))
    return tmp_path / "data" / "set"


def test_a_folder_is_read_and_names_that_look_alike_are_one(root):
    index = read_index(root)
    each = {"train source": 3, "test source normal": 1, "test target anomaly": 1, "test hidden hidden": 1}
    assert counts(index) == {machine: {"sections": 1, **each} for machine in ("pump", "rotor")}
    assert clip_paths(root) == sorted(path.relative_to(root).as_posix() for path in root.rglob("*.wav"))
    assert {*clip_paths(root)} == {*index["path"].to_pylist()}
    labels, names = class_labels(index.filter([row["split"] == "train" for row in index.to_pylist()]))
    assert labels.tolist() == [0, 0, 0, 1, 1, 2]
    assert names == ["pump/section_00", "rotor/section_00/spd=0", "rotor/section_00/spd=1"]
    composed, apart = (unicodedata.normalize(form, "Lüfter") for form in ("NFC", "NFD"))
    for machine, split in ((composed, "train"), (apart, "test")):
        (root / machine).mkdir()
        (root / "pump" / split).rename(root / machine / split)
    assert list(counts(read_index(root))) == [composed, "rotor"]
    assert find(root, f"{composed}/test") == root / apart / "test"
    assert find(root, f"{apart}/train") == root / composed / "train"


def test_digests_of_unchanged_clips_are_kept_and_of_no_others(root, tmp_path):
    clips, table = [root / path for path in clip_paths(root)], tmp_path / "cache" / "digests.parquet"
    for clip in clips[1:]:
        os.utime(clip, (1, 1))

    def change(clip, path):
        path.write_bytes(bytes(19_999) + b"\1")
        os.utime(path, (1, 1))
        path.replace(clip)

    def digests():
        digests = Dataset.read(root, table, write=True).index["digest"].to_pylist()
        return dict(zip(read_index(root)["path"].to_pylist(), digests, strict=True))

    before = digests()
    assert pq.read_table(table).num_rows == len(clips) - 1  # what has just been written may change within a tick
    change(clips[1], clips[1])  # whose file, size and time are the same then
    assert digests() == before
    change(clips[2], tmp_path / "new")
    assert {path for path, digest in digests().items() if digest != before[path]} == {clip_paths(root)[2]}
    table.write_bytes(b"half")
    now = digests()
    assert sum(digest != before[path] for path, digest in now.items()) == 2
    root = root.rename(root.with_name("moved"))
    assert digests() == now


def test_what_makes_no_data_set_is_named(root):
    clip = root / TEST.format("pump", "source", "normal", 0)
    for path, message in (
        (root / "pump" / "source_test" / clip.name, f"pump/.*{clip.name}: another folder of this machine holds a clip"),
        (root / os.fsdecode(b"pump/train/m\xfcller.wav"), r"\\xfc.*: the name is not UTF-8; rename it"),
    ):
        touch(path)
        with pytest.raises(InputError, match=message):
            read_index(root)
        path.unlink()
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
        (root / "pump", "this is a machine's own folder, give its parent"),
        (root / "nowhere", "nowhere: no such folder; give the folder that holds one folder per machine"),
        (new, r"not a data set: .*; .*fan: missing from the data set: .*1 in Train"),
    ):
        with pytest.raises(InputError, match=message):
            clip_paths(folder)


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
    for name in ("clean_0", "section_00_noise_0"):
        touch(root / "rotor" / "supplemental" / f"{name}.wav")
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
        ("pump/supplemental/noise.WAV", r"pump: recordings that are not read: 1 in supplemental \(\*\.WAV\)"),
        ("pump/supplemental/noise.wav", "^$"),
        ("noise.wav", "set: recordings that are not read: 1 in .; only"),
        ("docs/readme.md", "^$"),
        (".cache/train/a.wav", "^$"),
        (TRAIN.format("pump", 0, "noAttribute").replace("section", "._section"), "^$"),
    ],
)
def test_machines_and_recordings_that_are_not_read_are_named(root, path, warning, caplog):
    before = clip_paths(root)
    touch(root / path)
    assert clip_paths(root) == before
    assert re.search(warning, caplog.text)


def test_an_inspection_tells_what_cannot_be_used_and_what_looks_wrong(tmp_path):
    noise, read = np.random.default_rng(0).uniform(-0.5, 0.5, (10, 16_000)), []
    paths = [TRAIN.format("fan", i, "noAttribute") for i in range(4)]
    paths += [TEST.format("fan", "source", condition, i) for condition in ("normal", "anomaly") for i in range(3)]

    def inspected(changed, rate=16_000):
        for i, path in enumerate(paths):
            soundfile.write(touch(tmp_path / path), changed.get(i, noise[i]), rate if i in changed else 16_000, "FLOAT")
        return inspect(tmp_path, index_of(paths), read.append)

    sound = inspected({})
    assert (sound.notes, sound.problems, read) == ([], [], [1] * 10)
    assert sound.formats == {"fan": {"sampling rates": "16000 Hz", "channels": "1", "lengths": "1.0 s"}}
    assert inspected({i: noise[i].repeat(3) for i in (7, 8, 9)}, 48_000).notes == [
        "fan: sampling rates differ: 16000 Hz in 7 clips, 48000 Hz in 3 clips (all of them test anomaly); "
        "the recording, not the machine, tells which test clips are anomalies"
    ]
    assert inspected({i: np.stack([noise[i], noise[0]], 1)[: 8_000 * (i + 1)] for i in range(4)}).notes == [
        "fan: channels differ: 1 in 6 clips, 2 in 4 clips (all of them train)",
        "fan: lengths differ: 1.0 s in 9 clips, 0.5 s in 1 clip (all of them train)",
    ]
    wrong = inspected({0: noise[0, :1_000], 1: noise[1] * 5, 2: noise[3], 4: np.full(16_000, 0.3)})
    assert wrong.problems == [f"{tmp_path / paths[0]}: 0.062 s is shorter than one patch (0.175 s); remove it"]
    assert wrong.notes == [
        f"{paths[4]}: nothing is heard on channel 0",
        f"{paths[1]}: samples up to 2.5 times full scale (floats that hold integers?)",
        f"{paths[3]}: the same recording as {paths[2]}",
    ]


def record(path, seconds=1.0, rate=44_100, channels=2):
    soundfile.write(touch(path), 0.1 * np.random.default_rng(0).normal(size=(int(seconds * rate), channels)), rate)
    return path


def test_a_folder_becomes_a_data_set_or_what_a_manifest_says_and_folders_name_machines(tmp_path, caplog):
    first, *_ = [record(tmp_path / "in" / f"Press läuft {i}.WAV", 2.5) for i in range(4)]
    for name, seconds in (("target/x", 1), ("abnormal/damage", 1), ("test/normal/good", 0.4), ("test/who knows", 1)):
        record(tmp_path / "in" / f"{name}.wav", seconds)
    record(tmp_path / "in" / "Anomaly" / "damage.flac", 1.2, 48_000, 1)
    (tmp_path / "in" / "._good.wav").write_bytes(b"what macOS leaves")
    clips, dropped = import_recordings(originals(tmp_path / "in", "press"), tmp_path / "out", 1.0)
    assert (clips.total(), round(dropped, 6)) == (13, 2.2)
    assert clips["press", "test", "anomaly", "abnormal"] == clips["press", "test", "unlabelled", "test"] == 1
    index = read_index(tmp_path / "out")
    kinds = {"train source": 8, "train target": 1, "test source anomaly": 2, "test source normal": 1}
    assert counts(index) == {"press": {"sections": 1, **kinds, "test hidden hidden": 1}}
    names = original_names(tmp_path / "out")
    assert set(names) == {*index["path"].to_pylist()}
    assert str(first) in names.values()
    assert original_names(tmp_path / "in") == {}
    (second,) = [clip for clip, name in names.items() if name == f"{first}, from 1 s"]
    assert f"{second},{first},1.0,2.0\n" in (tmp_path / "out" / ORIGINALS).read_text()
    assert np.array_equal(read_clip(tmp_path / "out" / second), read_clip(first)[16_000:32_000])
    for name in ("a.wav", "b.wav", "c.wav", "set/train/fan/monday/x.wav", "set/train/pump/x.wav", "set/.hidden/x.wav"):
        record(tmp_path / name)
    (tmp_path / "list.csv").write_text(
        "\ufeffpath,machine,section,split,condition,domain,attributes\n"
        "a.wav,fan,2,Train,,target,spd 1_load_2\nb.wav,fan,2,,NG,,\nc.wav,,,test,,,\n"
    )
    soundfile.write(tmp_path / "c.wav", np.zeros(16_000), 16_000)
    import_recordings(originals(tmp_path / "list.csv", "pump"), tmp_path / "listed")
    assert "c.wav: nothing is heard in it" in caplog.text
    assert sorted(original_names(tmp_path / "listed")) == [
        "fan/test/section_02_source_test_anomaly_0000_noAttribute.wav",
        "fan/train/section_02_target_train_normal_0000_spd-1_load_2.wav",
        "pump/test/section_00_0000_noAttribute.wav",
    ]
    assert [(o.machine, o.path.name) for o in originals(tmp_path / "set")] == [("fan", "x.wav"), ("pump", "x.wav")]


@pytest.mark.parametrize(
    ("folders", "told"),
    [
        ("test/good test/hole train/good", ({"test normal", "test anomaly", "train normal"}, False)),
        ("id_00/normal id_02/abnormal", ({"train normal", "test anomaly"}, False)),
        ("monday tuesday", ({"train normal"}, True)),
        (". monday", ({"train normal"}, True)),
        ("normal hole", "press/hole: beside normal, whose names say what is in them, its does not; call folders n"),
        ("train test noise", "press/noise: beside test, train, whose names say what is in them"),
        ("faults/normal", "press/faults/normal: names of folders say both anomaly and normal"),
    ],
)
def test_no_anomaly_becomes_a_training_clip_without_a_word(folders, told, tmp_path, caplog):
    for folder in folders.split():
        touch(tmp_path / "press" / folder / "x.wav")
    if isinstance(told, str):
        with pytest.raises(InputError, match=f"/{told}"):
            originals(tmp_path, "fan")
        return
    found = originals(tmp_path, "fan")
    assert ({f"{o.split} {o.condition}" for o in found}, "does not say" in caplog.text) == told
    assert "--machine fan is not used: folders or rows name machines: press" in caplog.text


def test_what_is_no_recording_is_named_a_folder_read_once_and_words_tell_normal_from_anomalous(tmp_path, caplog):
    for name in ("rec/a.oga", "rec/b/c.RF64", "rec/d.M4A", "rec/e.wma", "rec/lost+found/f.wav", "away/g.wav"):
        touch(tmp_path / name)
    for link, target in (("up", ".."), ("rec/self", "."), ("rec/b/away", "../../away"), ("away/back", "../rec/b")):
        (tmp_path / link).symlink_to(target)
    found = originals(tmp_path / "rec", "fan")
    assert [o.path.relative_to(tmp_path / "rec").as_posix() for o in found] == ["a.oga", "b/away/g.wav", "b/c.RF64"]
    assert "rec: left out, as libsndfile reads no such files: 1 *.M4A, 1 *.wma; ffmpeg" in caplog.text
    assert caplog.text.count("rec/self: a link") == caplog.text.count("b/away/back: a link") == 1
    with pytest.raises(InputError, match=r"no recordings in it; left out, .*: 1 \*\.txt$"):
        originals(touch(tmp_path / "text" / "notes.txt").parent)
    with pytest.raises(InputError, match=r"/x+: cannot be read \(File name too long\); make it readable"):
        files(tmp_path / ("x" * 300))
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(InputError, match=r"pipe\.wav: a folder, pipe or device, not a recording's file"):
        read_clip(tmp_path / "pipe.wav")
    for names, said in (
        ("OK good NORMALS 0_normal NormalSound_IND undamaged no_leak leak-free faultless i.O. 正常 OK品", ["normal"]),
        ("NG 1_anomaly AnomalousSound_IND défaut broken_large not_ok notOK n.i.O. unhealthy 異常音 KO", ["anomaly"]),
        ("ToyTrain test_bench normalised default broker normal_and_abnormal id_00 low_pass", []),
        ("SourceTestData source_test TEST-source", ["test", "source"]),
    ):
        for name in names.split():
            assert [*labels_of(name).values()] == said, name


def test_mistakes_are_told_and_nothing_is_left_of_an_import_that_fails(tmp_path):
    for text, message in (
        ("file\na.wav\n", "no column path in its first line, which is 'file'; the columns are path, machine, "),
        ("path,colour\na.wav,red\n", "unknown column colour"),
        ("path,Path\na.wav,b.wav\n", "twice the column path"),
        ("path,attributes\na.wav,spd_1,load_2\n", "line 2: a cell without a column: 'a.wav,spd_1,load_2'; "),
        ("sep=;\npath;machine\n\nin\\a.wav;fan\n", r"line 4: there is no 'in\\\\a.wav'; write the path with /"),
        ("path\na.wav\n", "line 2: of which machine"),
        ("path,machine,split\na.wav,fan,eval\n", "line 2: split is 'eval'; it must be train or test, or empty"),
        ("path,machine,domain\na.wav,fan,moon\n", "domain is 'moon'; it must be source or target"),
        ("path,machine,split,condition\na.wav,fan,train,anomaly\n", "an anomaly for training"),
        ("path,machine,section\na.wav,fan,x\n", "section is 'x'; it must be a whole number"),
        ("path,machine\na.wav,a/b\n", "machine 'a/b' cannot be a folder's name"),
        ("path,machine\na.wav,.b\n", "machine '.b' cannot be a folder's name"),
        ("path,machine\n", "no recordings in it"),
        (f"path,machine,section\na.wav,fan,{'9' * 5000}\n", "section is '9+'; it must be a whole number"),
        ("path,machine\n\0.wav,fan\n", r"cannot be read as CSV \(a zero byte\)$"),
        ("path,machine\n\udcff.wav,fan\n", r"cannot be read as CSV .*; save it as CSV UTF-8$"),
    ):
        (tmp_path / "list.csv").write_text(text, errors="surrogateescape")
        with pytest.raises(InputError, match=rf"^{tmp_path}/list\.csv.* {message}"):
            originals(tmp_path / "list.csv")
    for damaged in ("a\n1\n", "clip,recording,start\n1\n", "clip,recording,start\n1,2,x\n", "\udcff"):
        (tmp_path / ORIGINALS).write_text(damaged, errors="surrogateescape")
        assert original_names(tmp_path) == {}
    record(tmp_path / "in" / "a.wav")
    (tmp_path / "in" / "b.wav").write_bytes(b"RIFF")
    for source, out, message in (
        ("in", "out", r"b\.wav"),
        ("in", "in", "in: exists already; give another folder, or remove it"),
        ("none", "out", "none: no such folder or manifest"),
    ):
        with pytest.raises(InputError, match=message):
            import_recordings(originals(tmp_path / source, "fan"), tmp_path / out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "list.csv", ORIGINALS]


def test_files_have_the_challenges_names_and_form_and_depend_on_their_name_and_the_seed_alone(tmp_path):
    assert write_dataset(tmp_path / "all", TINY) == len(MACHINES) * 10
    clips = read_index(tmp_path / "all")
    cells = {f"test {domain} {condition}": 1 for domain in ("source", "target") for condition in ("normal", "anomaly")}
    kinds = {"sections": 1, "train source": 4, "train target": 2, **cells}
    assert counts(clips) == dict.fromkeys(sorted(MACHINES), kinds)
    for clip in clips.to_pylist():
        info = soundfile.info(tmp_path / "all" / clip["path"])
        assert (info.channels, info.samplerate, info.subtype, info.frames) == (2, 16_000, "PCM_16", 16_000)
    for name, machine in MACHINES.items():
        of_machine = [dict(c["attributes"]) for c in clips.to_pylist() if (c["machine"], c["split"]) == (name, "train")]
        states = [{k: str(v) for k, v in state.items()} for state in (*machine.source, *machine.target)]
        assert {*map(str, of_machine)} == ({*map(str, states)} if machine.attributes else {"{}"})
    write_dataset(tmp_path / "some", TINY, machines=["valve", "pump", "valve"])
    write_dataset(tmp_path / "other", TINY, seed=1, machines=["valve"])

    def contents(folder):
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.wav")}

    everything, some, other = (contents(tmp_path / name) for name in ("all", "some", "other"))
    assert some == {name: content for name, content in everything.items() if name.parts[0] in ("valve", "pump")}
    assert len({*everything.values(), *other.values()}) == 60  # no two are alike


@pytest.mark.parametrize(("name", "machine"), MACHINES.items())
def test_sounds_are_those_that_figures_were_measured_on(name, machine):
    def signal(fault, severity, state=machine.target[-1]):
        return machine.source_signal(Operation(np.random.default_rng(0), RATE, state, fault, severity))

    clip = SyntheticClip(name, "test", "target", "anomaly", 1)
    heard = [100 * render(clip, 1.0, faintest=faintest).std(axis=0) for faintest in (0.0, 0.5)]
    noise = np.random.default_rng(1).normal(size=RATE) / 100
    faults = [(signal(fault, 1.0) - signal(fault, 0.0)) @ noise for fault in machine.faults]
    assert [*np.ravel(heard), signal(None, 1.0) @ noise, *faults] == pytest.approx(SOUNDS[name], abs=5e-4)
    assert all(np.array_equal(signal(None, 1.0), signal(fault, 0.0)) for fault in machine.faults)


def test_what_cannot_be_made_is_refused_and_nothing_touched(tmp_path):
    for size, more, message in (
        ({"train_source": 0}, {}, "train_source is 0; give at least 1 clip"),
        ({"train_target": -1}, {}, "train_target is -1"),
        ({"test_per_cell": 0}, {}, "test_per_cell is 0"),
        ({"seconds": 0.5}, {}, "seconds is 0.5; give at least 1"),
        ({"seconds": float("nan")}, {}, "seconds is nan"),
        ({"faintest": -0.1}, {}, "faintest is -0.1; give 0 or more, below 1"),
        ({"faintest": 1.0}, {}, "faintest is 1.0"),
        ({}, {"machines": ["rotor", "toaster"]}, "unknown machine toaster; choose from rotor, valve"),
        ({}, {"machines": []}, r"unknown machine \(none given\); choose from rotor"),
        ({}, {"seed": -1}, "seed is -1; give 0 or more"),
    ):
        with pytest.raises(InputError, match=f"^{message}"):
            write_dataset(tmp_path / "data", replace(TINY, **size), **more)
    (tmp_path / "notes.txt").touch()
    for taken in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(InputError, match=f"^{re.escape(str(taken))} already exists.*remove it or name another$"):
            write_dataset(taken, TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert (SyntheticSize(990, 10, 50, 10.0), SyntheticSize(90, 10, 25, 4.0, 0.3)) == (DEFAULT, DEMO)


DEV, ADDITIONAL, EVAL = (f"/api/records/{record}" for record in fetching.RECORDS["dcase2026"])
NAMES = {
    "dev_data_ToyCar.zip": "ToyCar",
    "eval_data_train_ToyCar.zip": "ToyCar",
    "eval_data_fan_test.zip": "fan",
    "dev_ToyCar_r2.zip": "ToyCar",
    "3DPrinter_train_r2.zip": "3DPrinter",
    "eval_data_2023_bandsaw_test.zip": "bandsaw",
    "additional_data_2025_Polisher_train.zip": "Polisher",
    "dev_data.zip": "",
}


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setattr(downloads, "PAUSES", (0.01, 0.02))
    with serving() as server:
        monkeypatch.setenv("ZENODO_ENDPOINT", server.url)
        server.files = {EVAL: {"files": []}}
        yield server


def add(web, record, name, files):
    """An archive of a record."""
    with zipfile.ZipFile(content := io.BytesIO(), "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    web.files[f"/{name}"] = content = content.getvalue()
    about = {"key": name, "size": len(content), "checksum": f"md5:{hashlib.md5(content).hexdigest()}"}
    web.files.setdefault(record, {"files": []})["files"].append({**about, "links": {"self": f"{web.url}/{name}"}})


def test_a_data_set_of_any_year_is_fetched_goes_on_after_a_cut_and_is_checked(web, dataset, tmp_path):
    assert {name: fetching._archive({"key": name, "checksum": "", "size": 1}, "").machine for name in NAMES} == NAMES
    train, test = ({p.name: p.read_bytes() for p in (dataset / "rotor" / part).iterdir()} for part in ("train", "test"))
    clips = {f"dev/fan/{part}/{n}": d for part, fs in (("train", train), ("test", test)) for n, d in fs.items()}
    add(web, DEV, "dev_fan.zip", {"fan/train/old.wav": b""})
    add(web, DEV, "dev_data_fan_r2.zip", {**clips, "__MACOSX/fan/train/._a.wav": b"", "../out/train/../../x.wav": b""})
    add(web, DEV, "README.pdf", {})
    add(web, ADDITIONAL, "eval_data_pump_train.zip", {f"train/{name}": data for name, data in train.items()})
    add(web, EVAL, "eval_data_pump_test.zip", {f"pump/test/{name}": data for name, data in test.items()})
    folder, web.kinds = tmp_path / "data", {"/dev_data_fan_r2.zip": "cut", "/eval_data_pump_test.zip": 503}
    first = tutti_here("data", "fetch", "dcase2026", folder)
    assert first.exit_code == 2
    assert "Error: 1 archive missing; the same command goes on: eval_data_pump_test.zip: cannot be" in first.stderr
    web.kinds = {}
    second = tutti_here("data", "fetch", "dcase2026", folder, "--keep")
    assert (second.exit_code, "3 archives, 1 to fetch" in second.stdout) == (0, True), second.stderr
    assert ("nothing that stops a run" in second.stderr, web.asked["/dev_fan.zip"]) == (True, 0)
    listed = {".archives", ".download.lock", "eval_data_pump_test.zip", "fan", "pump"}
    assert {path.name for path in folder.iterdir()} == listed
    assert {path.name for path in tmp_path.iterdir()} == {"data"}
    add(web, DEV, "dev_fan_r3.zip", {f"fan/train/{name}": data for name, data in train.items()})
    assert tutti_here("data", "fetch", "dcase2026", folder, "--machine", "fan").exit_code == 0
    assert not [*(folder / "fan" / "test").iterdir()]  # which the older archive held
    web.files["/api/records/7882613"] = web.files[DEV]
    assert "holds dcase2026" in tutti_here("data", "fetch", "dcase2023", folder, "--part", "dev", "--keep").stderr


def test_what_cannot_be_fetched_is_named(web, tmp_path):
    def refused(message, *arguments):
        done = tutti_here("data", "fetch", "dcase2026", tmp_path, "--part", "dev", *arguments)
        assert (done.exit_code, message in done.stderr.splitlines()[-1]) == (2, True), done.stderr

    refused("no archives in dev")
    for content, message in (({"x": 1}, "is no record of Zenodo"), (b"<html>", "else than JSON")):
        web.files[DEV] = content
        refused(message)
    web.files[DEV] = {"files": []}
    add(web, DEV, "dev_fan.zip", {"notes.txt": b""})
    refused("has no machine pump in dev; it has fan", "--machine", "pump")
    refused("holds no <machine>")
    (tmp_path / "dev_fan.zip").write_bytes(b"half")
    refused("remove it, and it is fetched anew")
    web.files[DEV]["files"][0]["size"] = 10**16
    refused("no room: 1 archive")
