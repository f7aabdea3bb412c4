"""Labels that come later: shown, and kept from every file and search."""

import pyarrow as pa
import pytest

from scoring.errors import InputError
from scoring.ground_truth import read_ground_truth
from scoring.table import conform, is_report_only, metadata_of, write_table

CELLS = [(condition, domain) for domain in ("source", "target") for condition in ("normal", "anomaly")]
FULL = [f"section_00_{domain}_test_{condition}_{i:04d}_spd_1.wav" for i, (condition, domain) in enumerate(CELLS)]
HIDDEN = [f"section_00_{i:04d}.wav" for i in range(4)]
FILE = "ground_truth_fan_section_00_test.csv"


def table(names, machine="fan", split="test"):
    columns = {"machine": [machine] * len(names), "clip": names, "split": [split] * len(names)}
    return conform(pa.table({**columns, "score": [0.0] * len(names)}))


def labels(table, names):
    """Condition and domain of the clips in the order of their names."""
    rows = {row["clip"]: (row["condition"], row["domain"]) for row in table.to_pylist()}
    return [rows[name] for name in names]


@pytest.fixture
def folder(tmp_path):
    """The evaluator's folders, a level below the one that is given."""
    write(tmp_path, "ground_truth_data", [0, 1, 0, 1])
    write(tmp_path, "ground_truth_domain", ["0.0", "0.0", "1.0", "1.0"])
    write(tmp_path, "ground_truth_attributes", [name.removesuffix(".wav") for name in FULL])
    return tmp_path


def write(root, kind, values):
    path = root / "evaluator" / kind / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = zip(HIDDEN, values, strict=True)
    path.write_text("".join(f"{clip},{value}\n" for clip, value in rows), encoding="utf-8-sig")


def test_clips_get_their_labels_by_their_published_and_by_their_full_names(folder):
    truth = read_ground_truth(folder)
    for names in (HIDDEN, FULL):
        of_two = conform(pa.concat_tables([table(names), table(names, "pump")]))
        assert labels(truth.revealed(of_two), names) == CELLS


def test_training_clips_keep_theirs_whatever_they_are_called(folder):
    train = table(HIDDEN[-2:], split="train")
    revealed = read_ground_truth(folder).revealed(conform(pa.concat_tables([table(HIDDEN), train])))
    assert [row["condition"] for row in revealed.to_pylist() if row["split"] == "train"] == [None, None]


def test_domains_come_from_full_names_or_stay_unknown(folder):
    (folder / "evaluator" / "ground_truth_domain" / FILE).unlink()
    assert labels(read_ground_truth(folder).revealed(table(HIDDEN)), HIDDEN) == CELLS
    (folder / "evaluator" / "ground_truth_attributes" / FILE).unlink()
    unknown = [(condition, None) for condition, _ in CELLS]
    assert labels(read_ground_truth(folder).revealed(table(HIDDEN)), HIDDEN) == unknown


def test_the_list_of_2020_is_read(tmp_path):
    (tmp_path / "eval_data_list.csv").write_text(
        "fan\nid_01_00000000.wav,normal_id_01_00000000.wav,0\nid_01_00000001.wav,anomaly_id_01_00000001.wav,1\n"
    )
    revealed = read_ground_truth(tmp_path).revealed(table(["id_01_00000000.wav", "id_01_00000001.wav"]))
    assert revealed["condition"].to_pylist() == ["normal", "anomaly"]
    assert set(revealed["section"].to_pylist()) == {1}


def test_no_file_takes_these_labels(folder, tmp_path):
    revealed = read_ground_truth(folder).revealed(table(HIDDEN).replace_schema_metadata({"branch_id": "abc"}))
    assert is_report_only(revealed)
    assert metadata_of(revealed)["branch_id"] == "abc"
    with pytest.raises(ValueError, match="not written"):
        write_table(revealed, tmp_path / "x.parquet")


def test_a_label_that_changed_counts_and_is_told(folder, caplog):
    write(folder, "ground_truth_data", [0, 0, 0, 0])
    assert set(read_ground_truth(folder).revealed(table(FULL))["condition"].to_pylist()) == {"normal"}
    assert "labels of 2 clips differ from the table's" in caplog.text


@pytest.mark.parametrize(
    ("names", "machine", "message"),
    [
        (HIDDEN[:-1], "fan", "fan section 0: 1 clips of the ground truth have no score, section_00_0003.wav"),
        ([*HIDDEN[:-1], "section_00_9999.wav"], "fan", "no ground truth for fan/section_00_9999.wav"),
        (HIDDEN, "pump", "ground truth of fan section 00; the table has none"),
    ],
)
def test_a_missing_clip_is_an_error(folder, names, machine, message):
    with pytest.raises(InputError, match=message):
        read_ground_truth(folder).revealed(table(names, machine))


def test_folders_that_tell_nothing_or_two_things_are_named(folder, tmp_path):
    other = tmp_path / "z_of_another_year" / FILE
    other.parent.mkdir()
    with pytest.raises(InputError, match=f"{other.parent}: no ground_truth_<machine>"):
        read_ground_truth(other.parent)
    other.write_text("section_00_0000.wav,1\n")
    with pytest.raises(InputError, match=f"{other}: the same machine and section as .*evaluator"):
        read_ground_truth(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (FILE, b"a.wav,yes", "a.wav is 'yes'; 0 means normal, 1 means anomaly"),
        (FILE, b"a.wav,1\nb.wav", "line 2 has 1 columns; it must be `clip,value`"),
        (FILE, b"\xff", "cannot be read as CSV"),
        ("eval_data_list.csv", b"id_01_00000000.wav,normal_id_01_00000000.wav,0", "line 1 is neither a machine nor"),
    ],
)
def test_lines_that_say_nothing_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{tmp_path / name}: {message}"):
        read_ground_truth(tmp_path)
