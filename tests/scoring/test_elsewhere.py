"""Score tables of other tools and teams."""

import io

import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scoring.elsewhere import read_scores, table_path, table_sha256, tables_in
from scoring.errors import InputError
from scoring.ground_truth import read_ground_truth
from scoring.table import SCHEMA
from tests.tables import make_table

ROWS = {
    "section_01_source_test_normal_0000_spd_1.wav": 0.25,
    "section_01_target_test_anomaly_0001_noAttribute.wav": 1.5,
    "section_01_0002.wav": -3e-4,
}
CHALLENGE = "anomaly_score_ToyCar_section_01_test.csv"


def submitted(folder, name=CHALLENGE, prefix=""):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(f"{prefix}{clip},{score}\n" for clip, score in ROWS.items()))
    return folder / name


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        (CHALLENGE, ""),
        ("anomaly_score_DCASE2023T2ToyCar_section_01_test_seed13711_id_Eval.csv", "./dev/ToyCar/test/"),
        ("anomaly_score_ToyCar_id_01.csv", "dev\\ToyCar\\test\\"),
    ],
)
def test_the_challenges_files_and_the_baselines(tmp_path, name, prefix):
    table = read_scores(submitted(tmp_path, name, prefix))
    assert dict(zip(table["clip"].to_pylist(), table["score"].to_pylist(), strict=True)) == ROWS
    assert {(row["machine"], row["section"], row["split"]) for row in table.to_pylist()} == {("ToyCar", 1, "test")}
    labels = [(row["domain"], row["condition"]) for row in table.to_pylist()]
    assert labels == [(None, None), ("source", "normal"), ("target", "anomaly")]
    assert read_scores(tmp_path).equals(table)


def test_a_folder_is_one_table_of_many_files_and_has_one_checksum(tmp_path):
    team = tmp_path / "team"
    submitted(team)
    fan = submitted(team, "anomaly_score_fan_section_00_test.csv")
    (team / "decision_result_fan_section_00_test.csv").write_text("x,1\n")
    assert set(read_scores(team)["machine"].to_pylist()) == {"ToyCar", "fan"}
    checksums = [table_sha256(team)]
    fan.rename(team / "anomaly_score_pump_section_00_test.csv")
    checksums.append(table_sha256(team))
    submitted(team, prefix="x/")
    assert len({*checksums, table_sha256(team)}) == 3


def test_tables_are_found_by_name(tmp_path):
    submitted(tmp_path / "team")
    for name in ("ours.parquet", "mine.CSV", "ours.csv", "notes.txt", "empty/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(tables_in(tmp_path)) == ["mine", "ours", "team"]
    assert tables_in(tmp_path / "team") == {"team": tmp_path / "team"}
    for name, file in (("ours", "ours.parquet"), ("team", "team"), ("lost", "lost.parquet")):
        assert table_path(tmp_path, name) == tmp_path / file


def test_plain_csv_has_what_the_table_has(tmp_path):
    table = make_table(labelled=False)
    for absent in ("", "None", "null", "nan", "NaN"):
        pyarrow.csv.write_csv(table, tmp_path / "t.csv")
        text = (tmp_path / "t.csv").read_text().replace(",,,", f",{absent},{absent},")
        (tmp_path / "t.csv").write_text(text)
        assert read_scores(tmp_path / "t.csv").equals(table)


def test_a_table_of_pandas_is_read(tmp_path):
    """With pandas' index, 32-bit scores and categories."""
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"machine": "fan", "file": "x", "clip": list(ROWS), "score": list(ROWS.values())})
    frame = frame.astype({"machine": "category", "score": "float32"})
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv")
    for name in ("t.parquet", "t.csv"):
        table = read_scores(tmp_path / name)
        assert table.schema.equals(SCHEMA)
        assert sorted(table["score"].to_pylist()) == pytest.approx(sorted(ROWS.values()))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (CHALLENGE, "filename,score\nx.wav,1\n", "without a header"),
        (CHALLENGE, "x.wav,1,2\n", "rows must be `clip,score`"),
        ("t.csv", "clip,score\nx.wav,1\n", "no column machine"),
        ("t.csv", "machine,clip,score\nfan,x.wav,high\n", "a header must name the columns"),
        ("t.csv", "", "a header must name the columns"),
        ("t.parquet", "PAR1 and nothing more", "not a readable Parquet file"),
        ("none.csv", None, "no such score table"),
        ("none.parquet", None, "no such score table"),
        (".", None, "no anomaly_score_"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"{tmp_path / name}: .*{message}"):
        read_scores(tmp_path / name)


def content(write):
    buffer = io.BytesIO()
    write(make_table(["fan"], 1, 2), buffer)
    return buffer.getvalue()


PARQUET, CSV = ("t.parquet", content(pq.write_table)), ("t.csv", content(pyarrow.csv.write_csv))
FILES = [
    PARQUET,
    CSV,
    (CHALLENGE, b"a.wav,1\nb.wav,2\n"),
    ("ground_truth_fan_section_00_test.csv", b"a.wav,0\nb.wav,1\n"),
    ("eval_data_list.csv", b"fan\nid_01_00000000.wav,normal_id_01_00000000.wav,0\n"),
]


def refusal(path):
    """What is said of a file, or None if it has been read."""
    try:
        if path.name.startswith(("ground_truth", "eval")):
            assert read_ground_truth(path.parent).labels
        else:
            assert read_scores(path).to_pylist()
    except InputError as error:
        return str(error)


@given(st.sampled_from(FILES), st.integers(0, 9999), st.binary(max_size=9), st.booleans())
@example(CSV, 1, b"\xff", False)  # in a column's name
@example(PARQUET, PARQUET[1].index(b"machine"), b"\xff", False)
@example(PARQUET, PARQUET[1].index(b"normal"), b"\xff", False)
@settings(max_examples=120, deadline=None)
def test_of_whatever_bytes_there_is_a_table_or_one_line_that_names_the_file(tmp_path_factory, file, at, put, cut):
    """Of tables and of ground truth."""
    path, whole = tmp_path_factory.mktemp("bytes") / file[0], file[1]
    at %= len(whole) + 1
    path.write_bytes(whole[:at] + put + (b"" if cut else whole[at + len(put) :]))
    message = refusal(path) or str(path)
    assert str(path.parent) in message
    assert "\n" not in message
