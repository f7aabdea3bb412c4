"""Score tables of other tools and teams."""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from scoring.elsewhere import read_scores, table_sha256, tables_in
from scoring.errors import InputError
from scoring.table import SCHEMA, conform
from tests.tables import make_table

ROWS = {
    "section_01_source_test_normal_0000_spd_1.wav": 0.25,
    "section_01_target_test_anomaly_0001_noAttribute.wav": 1.5,
    "section_01_0002.wav": -3e-4,
}


def submitted(folder, name="anomaly_score_ToyCar_section_01_test.csv", prefix=""):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(f"{prefix}{clip},{score}\n" for clip, score in ROWS.items()))
    return folder / name


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("anomaly_score_ToyCar_section_01_test.csv", ""),
        ("anomaly_score_DCASE2023T2ToyCar_section_01_test_seed13711_id_Eval.csv", "./dev/ToyCar/test/"),
        ("anomaly_score_ToyCar_id_01.csv", ""),
    ],
)
def test_the_challenges_files_and_the_baselines(tmp_path, name, prefix):
    path = submitted(tmp_path, name, prefix)
    table = read_scores(path)
    assert dict(zip(table["clip"].to_pylist(), table["score"].to_pylist(), strict=True)) == ROWS
    assert set(table["machine"].to_pylist()) == {"ToyCar"}
    assert set(table["section"].to_pylist()) == {1}
    by_clip = {row["clip"]: (row["domain"], row["condition"]) for row in table.to_pylist()}
    assert list(by_clip.values()) == [(None, None), ("source", "normal"), ("target", "anomaly")]
    assert read_scores(tmp_path).equals(table)


def test_a_folder_is_one_table_of_many_files(tmp_path):
    submitted(tmp_path / "team")
    submitted(tmp_path / "team", "anomaly_score_fan_section_00_test.csv")
    (tmp_path / "team" / "decision_result_fan_section_00_test.csv").write_text("x,1\n")
    pq.write_table(make_table(), tmp_path / "ours.parquet")
    (tmp_path / "notes.txt").write_text("none")
    assert list(tables_in(tmp_path)) == ["ours", "team"]
    table = read_scores(tmp_path / "team")
    assert sorted(set(table["machine"].to_pylist())) == ["ToyCar", "fan"]
    before = table_sha256(tmp_path / "team")
    submitted(tmp_path / "team", prefix="x/")
    assert table_sha256(tmp_path / "team") != before


def test_plain_csv_has_what_the_table_has(tmp_path):
    table = make_table(labelled=False)
    pyarrow.csv.write_csv(table, tmp_path / "t.csv")
    assert read_scores(tmp_path / "t.csv").equals(table)
    few = table.filter(pc.equal(table["split"], "test")).select(["machine", "clip", "score"])
    pyarrow.csv.write_csv(few, tmp_path / "few.csv")
    assert set(read_scores(tmp_path / "few.csv")["section"].to_pylist()) == {0}


def test_a_table_of_pandas_is_read(tmp_path):
    """With pandas' index, 32-bit scores and categories."""
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"machine": "fan", "file": "x", "clip": list(ROWS), "score": list(ROWS.values())})
    frame["machine"] = frame["machine"].astype("category")
    frame["score"] = frame["score"].astype("float32")
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv")
    for name in ("t.parquet", "t.csv"):
        table = read_scores(tmp_path / name)
        assert table.schema.equals(SCHEMA)
        assert sorted(table["score"].to_pylist()) == pytest.approx(sorted(ROWS.values()))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("anomaly_score_fan_section_00_test.csv", "filename,score\nx.wav,1\n", "without a header"),
        ("anomaly_score_fan_section_00_test.csv", "x.wav,1,2\n", "rows must be `clip,score`"),
        ("t.csv", "clip,score\nx.wav,1\n", "no column machine"),
        ("t.csv", "machine,clip,score\nfan,x.wav,\n", "score has 1 missing values"),
        ("t.csv", "machine,clip,score\nfan,x.wav,high\n", "a header must name the columns"),
        ("t.csv", "", "a header must name the columns"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_scores(tmp_path / name)


def test_what_is_not_there_is_told(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path / "none.parquet"):
        with pytest.raises(InputError, match="no such score table"):
            read_scores(path)
    with pytest.raises(InputError, match="no anomaly_score_"):
        read_scores(tmp_path)


def test_columns_that_are_there_are_not_read_from_names():
    clip = "section_01_source_test_normal_0000_spd_1.wav"
    table = conform(pa.table({"machine": ["fan"], "clip": [clip], "section": [7], "score": [0.0]}))
    assert (table["section"][0].as_py(), table["domain"][0].as_py()) == (7, "source")
