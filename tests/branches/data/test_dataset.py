import gzip
from pathlib import Path

import pytest

from branches.data.dataset import Dataset, class_labels, counts, index_of, noise_index, parse_path, read_index
from branches.spec import BranchSpec
from scoring.clip_names import parse_clip_name
from scoring.errors import InputError

TRAIN = "{}/train/section_00_source_train_normal_{:04d}_{}.wav"
TEST = "{}/test/section_00_{}_test_{}_0000_noAttribute.wav"


def test_all_names_of_2026_are_read_and_can_be_put_together_again():
    """Nothing of a name is lost or invented: machine, folder and name follow from the parsed fields."""
    with gzip.open(Path(__file__).parents[1] / "fixtures" / "dcase2026_names.txt.gz", "rt") as file:
        names = file.read().split()
    assert index_of(names).num_rows == 14_400
    for path in names:
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
        ("fan/train/section_00_train_normal_0000.wav", "must say source or target"),
        ("fan/train/noise.wav", "not a name of the challenge, .*`tutti data import` takes recordings of any name"),
        ("fan/dev/section_00_0000.wav", "the folder is none of train, test, source_test, target_test"),
        ("fan/test/section_00_source_train_normal_0000_noAttribute.wav", "the name says train, the folder says test"),
        ("fan/train/section_00_source_train_anomaly_0000_noAttribute.wav", "an anomaly among the training clips"),
    ],
)
def test_names_of_all_years_are_read_and_others_named(path, expected):
    if isinstance(expected, str):
        with pytest.raises(InputError, match=f"^{path}: .*{expected}"):
            parse_path(path)
    else:
        clip = parse_path(path)
        assert (clip.section, clip.split, clip.domain, clip.condition, clip.attributes) == expected
        assert (clip.machine, clip.clip, clip.path) == (path.split("/")[0], path.split("/")[2], path)


@pytest.fixture
def root(tmp_path):
    """A rotor and a pump, three training and three test clips each, of 20 kB that sound of nothing."""
    for machine, attributes in (("rotor", "spd_{}"), ("pump", "noAttribute")):
        paths = [TRAIN.format(machine, i, attributes.format(i // 2)) for i in range(3)]
        paths += [TEST.format(machine, *cell) for cell in (("source", "normal"), ("target", "anomaly"))]
        for path in (*paths, f"{machine}/test/section_00_0001.wav"):
            (tmp_path / "data" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / path).write_bytes(bytes(20_000))
    return tmp_path / "data"


def test_a_folder_is_read(root):
    index = read_index(root)
    each = {"train source": 3, "test source normal": 1, "test target anomaly": 1, "test hidden hidden": 1}
    assert counts(index) == {machine: {"sections": 1, **each} for machine in ("pump", "rotor")}
    assert all((root / path).exists() for path in index["path"].to_pylist())
    assert index["machine"].to_pylist() == ["pump"] * 6 + ["rotor"] * 6
    labels, names = class_labels(index.filter([row["split"] == "train" for row in index.to_pylist()]))
    assert labels.tolist() == [0, 0, 0, 1, 1, 2]
    assert names == ["pump/section_00", "rotor/section_00/spd=0", "rotor/section_00/spd=1"]


@pytest.mark.parametrize("position", [0, 11_000, 19_999, 20_000])
def test_the_fingerprint_is_of_names_and_contents(root, position):
    before = Dataset.read(root).fingerprint
    moved = root.rename(root.with_name("moved"))
    assert Dataset.read(moved).fingerprint == before
    wav = moved / TRAIN.format("rotor", 0, "spd_0")
    content = bytearray(wav.read_bytes())
    content[position : position + 1] = b"x"
    wav.write_bytes(content)
    assert Dataset.read(moved).fingerprint != before


def test_a_training_rests_on_its_training_clips_and_noise_alone(root):
    def fingerprints():
        noise = {"noise": {"source": "supplemental"}}
        specs = [None, BranchSpec(), BranchSpec(augmentation=noise), BranchSpec(strategy="frozen")]
        data = Dataset.read(root)
        return [data.fingerprint, *(data.training_fingerprint(spec) for spec in specs)]

    def changed():
        return [old != new for old, new in zip(before, fingerprints(), strict=True)]

    before = fingerprints()
    (root / TEST.format("rotor", "source", "normal")).unlink()
    assert changed() == [True, False, False, False, False]
    for name in ("clean_0.wav", "section_00_noise_0.wav"):
        (root / "rotor" / "supplemental").mkdir(exist_ok=True)
        (root / "rotor" / "supplemental" / name).touch()
    assert noise_index(root).to_pylist() == [{"machine": "rotor", "path": "rotor/supplemental/section_00_noise_0.wav"}]
    assert changed() == [True, False, False, True, False]
    (root / TRAIN.format("rotor", 0, "spd_0")).rename(root / TRAIN.format("rotor", 9, "spd_0"))
    assert changed() == [True, True, True, True, False]


def test_what_makes_no_data_set_is_named(root):
    clip, other = root / TEST.format("pump", "source", "normal"), root / "pump" / "source_test"
    other.mkdir()
    (other / clip.name).touch()
    with pytest.raises(InputError, match=f"^pump/.*{clip.name}: another folder of this machine holds a clip"):
        read_index(root)
    (other / clip.name).unlink()
    clip.unlink()
    clip.symlink_to("nowhere.wav")
    with pytest.raises(InputError, match=rf"^{clip}: cannot be read \(No such file or directory\); replace"):
        Dataset.read(root)
    (root / TRAIN.format("pump", 0, "noAttribute")).unlink()
    with pytest.raises(InputError, match="machine pump section 0 has 2 training clips; scoring needs at least 3"):
        read_index(root)
