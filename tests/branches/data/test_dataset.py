import gzip
import shutil
from collections import Counter
from pathlib import Path

import pytest

from branches.data.dataset import Dataset, class_labels, counts, index_of, parse_path, read_index
from branches.data.synthetic import SyntheticSize, write_dataset
from branches.spec import BranchSpec
from scoring.clip_names import parse_clip_name
from scoring.errors import InputError

DEV = {"bearingEmu", "fan", "gearboxEmu", "sliderEmu", "ToyCar", "ToyCarEmu", "valveEmu"}
EVAL = {"BlowerDustCollector", "Sander", "SewingMachine", "ToothBrush", "ToyDrone"}


@pytest.fixture(scope="module")
def names_2026():
    with gzip.open(Path(__file__).parents[1] / "fixtures" / "dcase2026_names.txt.gz", "rt") as file:
        return file.read().split()


def test_all_names_of_2026_are_read(names_2026):
    index = index_of(names_2026)
    rows = index.to_pylist()
    assert len(rows) == 14_400
    assert {row["machine"] for row in rows} == DEV | EVAL
    assert {row["section"] for row in rows} == {0}
    cells = Counter((r["machine"], r["split"], r["domain"], r["condition"]) for r in rows)
    for machine in DEV | EVAL:
        assert cells.pop((machine, "train", "source", "normal")) == 990
        assert cells.pop((machine, "train", "target", "normal")) == 10
    for machine in DEV:
        for domain in ("source", "target"):
            assert cells.pop((machine, "test", domain, "normal")) == 50
            assert cells.pop((machine, "test", domain, "anomaly")) == 50
    for machine in EVAL:
        assert cells.pop((machine, "test", None, None)) == 200
    assert not cells


def test_every_name_of_2026_can_be_put_together_again(names_2026):
    """Nothing of a name is lost or invented: machine, folder and name follow from the parsed fields."""
    for path in names_2026:
        clip, parts = parse_path(path), parse_clip_name(path.split("/")[2])
        number = int(clip.clip.removesuffix(".wav").split("_")[2 if clip.condition is None else 5])
        name = parts.file_name(number)
        if clip.condition is None:  # the organisers hide the attributes, too
            name = name.replace("_noAttribute", "")
        assert f"{clip.machine}/{clip.split}/{name}" == path


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (
            "ToyCarEmu/train/section_00_target_train_normal_0007_car_A1_spd_28V_mic_2_mic_1.wav",
            (0, "train", "target", "normal", (("car", "A1"), ("spd", "28V"), ("mic", "2"), ("mic", "1"))),
        ),
        ("fan/test/section_02_source_test_anomaly_0012_m-n_W.wav", (2, "test", "source", "anomaly", (("m-n", "W"),))),
        (
            "fan/source_test/section_01_source_test_normal_0003_strength_1_ambient.wav",
            (1, "test", "source", "normal", (("strength", "1"), ("", "ambient"))),
        ),
        ("fan/target_test/section_03_0003.wav", (3, "test", "target", None, ())),
        ("slider/test/section_05_test_0199.wav", (5, "test", None, None, ())),
        ("pump/train/normal_id_06_00000933.wav", (6, "train", "source", "normal", ())),
        ("pump/test/anomaly_id_00_00000001.wav", (0, "test", "source", "anomaly", ())),
        ("pump/test/id_01_00000001.wav", (1, "test", "source", None, ())),
    ],
)
def test_names_of_all_years(path, expected):
    clip = parse_path(path)
    assert (clip.section, clip.split, clip.domain, clip.condition, clip.attributes) == expected
    assert (clip.machine, clip.clip, clip.path) == (path.split("/")[0], path.split("/")[2], path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("fan/train/section_00_train_normal_0000.wav", "must say source or target"),
        ("fan/train/noise.wav", "not a name of the challenge"),
        ("fan/dev/section_00_0000.wav", "the folder is none of train"),
        ("fan/test/section_00_source_train_normal_0000_noAttribute.wav", "the name says train, the folder says test"),
        ("fan/train/section_00_source_train_anomaly_0000_noAttribute.wav", "an anomaly among the training clips"),
    ],
)
def test_names_that_cannot_be_read(path, message):
    with pytest.raises(InputError, match=message) as raised:
        parse_path(path)
    assert path in str(raised.value)


@pytest.fixture
def dataset(tmp_path):
    root = tmp_path / "data"
    write_dataset(root, SyntheticSize(4, 2, 1, 1.0), machines=["rotor", "pump"])
    return root


def test_a_folder_is_read(dataset):
    (dataset / "rotor" / "notes.txt").write_text("not a clip")
    index = read_index(dataset)
    assert counts(index)["rotor"] == {
        "sections": 1,
        "train source": 4,
        "train target": 2,
        "test source normal": 1,
        "test source anomaly": 1,
        "test target normal": 1,
        "test target anomaly": 1,
    }
    assert all((dataset / path).exists() for path in index["path"].to_pylist())


def test_classes_are_machine_section_and_attributes(dataset):
    index = read_index(dataset)
    labels, names = class_labels(index)
    assert "pump/section_00" in names
    assert all(name.startswith("rotor/section_00/spd=") for name in names if name != "pump/section_00")
    for label, machine in zip(labels, index["machine"].to_pylist(), strict=True):
        assert names[label].startswith(machine)


def test_the_fingerprint_is_of_names_and_contents(dataset):
    before = Dataset.read(dataset).fingerprint
    moved = dataset.rename(dataset.with_name("moved"))
    assert Dataset.read(moved).fingerprint == before
    wav = next(moved.glob("*/train/*.wav"))
    content = bytearray(wav.read_bytes())
    content[len(content) // 2 + 10] ^= 1
    wav.write_bytes(content)
    assert Dataset.read(moved).fingerprint != before


def test_a_training_rests_on_its_training_clips_alone(dataset):
    before, spec = Dataset.read(dataset), BranchSpec()
    noisy = BranchSpec(augmentation={"noise": {"source": "supplemental"}})
    frozen = BranchSpec(strategy="frozen")
    next((dataset / "rotor" / "test").glob("*.wav")).unlink()
    (dataset / "rotor" / "supplemental").mkdir()
    shutil.copy(next(dataset.glob("pump/train/*.wav")), dataset / "rotor" / "supplemental" / "noise_0.wav")
    after = Dataset.read(dataset)
    assert after.fingerprint != before.fingerprint
    assert after.training_fingerprint(spec) == before.training_fingerprint(spec)
    assert after.training_fingerprint(noisy) != before.training_fingerprint(noisy)
    next((dataset / "rotor" / "train").glob("*.wav")).unlink()
    last = Dataset.read(dataset)
    assert last.training_fingerprint(spec) != before.training_fingerprint(spec)
    assert last.training_fingerprint(frozen) == before.training_fingerprint(frozen)


def test_folders_that_are_no_data_set(dataset, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        read_index(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="not a data set"):
        read_index(tmp_path / "empty")
    with pytest.raises(InputError, match="a machine's own folder, give its parent"):
        read_index(dataset / "pump")


def test_a_clip_that_cannot_be_opened_is_named(dataset):
    wav = next((dataset / "pump" / "test").iterdir())
    wav.unlink()
    wav.symlink_to("nowhere.wav")
    with pytest.raises(InputError, match=f"{wav.name}: cannot be read"):
        Dataset.read(dataset)


def test_a_machine_without_training_clips_is_named(dataset):
    for wav in (dataset / "pump" / "train").iterdir():
        wav.unlink()
    with pytest.raises(InputError, match="machine pump section 0 has 0 training clips"):
        read_index(dataset)


def test_the_same_clip_in_two_folders_is_named(dataset):
    wav = next((dataset / "pump" / "test").glob("*_source_*.wav"))
    (dataset / "pump" / "source_test").mkdir()
    (dataset / "pump" / "source_test" / wav.name).write_bytes(wav.read_bytes())
    with pytest.raises(InputError, match="another folder of this machine holds a clip of the same name"):
        read_index(dataset)
