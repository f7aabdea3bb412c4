"""Score tables of other tools and teams; labels that come later: shown, and kept from every file and search."""

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scoring.elsewhere import is_table, read_scores, table_name, table_path, table_sha256, tables_in
from scoring.errors import InputError
from scoring.ground_truth import read_ground_truth
from scoring.table import SCHEMA, conform, is_report_only, metadata_of, write_table
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


@pytest.mark.parametrize("name", [CHALLENGE, "anomaly_score_DCASE2023T2ToyCar_section_01_test_seed1_id_Eval.csv"])
@pytest.mark.parametrize("prefix", ["", "./dev/ToyCar/test/", "dev\\ToyCar\\test\\"])
def test_the_challenges_files_and_the_baselines(tmp_path, name, prefix):
    table, (first, second, third) = read_scores(submitted(tmp_path, name, prefix)), ROWS.items()
    assert [tuple(row.values())[:-1] for row in table.to_pylist()] == [
        ("ToyCar", 1, third[0], "test", None, None, third[1]),
        ("ToyCar", 1, first[0], "test", "source", "normal", first[1]),
        ("ToyCar", 1, second[0], "test", "target", "anomaly", second[1]),
    ]
    assert read_scores(tmp_path).equals(table)


def test_tables_are_found_by_name_and_a_folder_of_many_files_is_one_with_one_checksum(tmp_path):
    team = tmp_path / "team"
    submitted(team)
    fan = submitted(team, "anomaly_score_fan_id_00.csv")
    (team / "decision_result_fan_section_00_test.csv").write_text("x,1\n")
    assert set(read_scores(team)["machine"].to_pylist()) == {"ToyCar", "fan"}
    for name in ("ours.parquet", "mine.CSV", "ours.csv", "notes.txt", "empty/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(tables_in(tmp_path)) == ["mine", "ours", "team"]
    assert (is_table(team), is_table(tmp_path), table_name(team)) == (True, False, "team")
    paths = [table_path(tmp_path, name) for name in ("ours", "team", "lost")]
    assert paths == [tmp_path / file for file in ("ours.parquet", "team", "lost.parquet")]
    checksums = [table_sha256(team)]
    fan.rename(team / "anomaly_score_pump_section_00_test.csv")
    checksums.append(table_sha256(team))
    submitted(team, prefix="x/")
    assert len({*checksums, table_sha256(team)}) == 3


def test_csv_and_what_pandas_writes_have_what_the_table_has(tmp_path):
    table, path, pd = make_table(labelled=False), tmp_path / "t.csv", pytest.importorskip("pandas")
    for absent in ("", "None", "null", "nan", "NaN"):
        pyarrow.csv.write_csv(table, path)
        path.write_text(path.read_text().replace(",,,", f",{absent},{absent},"))
        assert read_scores(path).equals(table)
    frame = pd.DataFrame({"machine": "fan", "file": "x", "clip": list(ROWS), "score": list(ROWS.values())})
    frame = frame.astype({"machine": "category", "score": "float32"})
    for form in ("parquet", "csv"):
        getattr(frame, f"to_{form}")(tmp_path / f"t.{form}")
        table = read_scores(tmp_path / f"t.{form}")
        assert table.schema.equals(SCHEMA)
        assert sorted(table["score"].to_pylist()) == pytest.approx(sorted(ROWS.values()))


CELLS = [(condition, domain) for domain in ("source", "target") for condition in ("normal", "anomaly")]
FULL = [f"section_00_{domain}_test_{condition}_{i:04d}_spd_1.wav" for i, (condition, domain) in enumerate(CELLS)]
HIDDEN = [f"section_00_{i:04d}.wav" for i in range(4)]
TRUTH, LIST = "ground_truth_fan_section_00_test.csv", "eval_data_list.csv"


def scored(names, machine="fan", split="test"):
    return conform(pa.Table.from_pylist([{"machine": machine, "clip": n, "split": split, "score": 0.0} for n in names]))


def write(root, kind, values):
    path = root / "evaluator" / kind / TRUTH
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{clip},{value}" for clip, value in zip(HIDDEN, values, strict=True)]
    path.write_text("\n".join(rows), encoding="utf-8-sig")


@pytest.fixture
def folder(tmp_path):
    """The evaluator's folders, a level below the one that is given."""
    write(tmp_path, "ground_truth_data", [0, 1, 0, 1])
    write(tmp_path, "ground_truth_domain", ["0.0", "0.0", "1.0", "1.0"])
    write(tmp_path, "ground_truth_attributes", [name.removesuffix(".wav") for name in FULL])
    return tmp_path


def labels(folder, *tables):
    rows = read_ground_truth(folder).revealed(conform(pa.concat_tables(tables))).to_pylist()
    return {(row["split"], row["clip"]): (row["condition"], row["domain"]) for row in rows}


def test_test_clips_get_their_labels_by_both_names_and_their_domains_by_the_full_ones_or_not_at_all(folder):
    train = scored(HIDDEN[-2:], split="train")
    for names in (HIDDEN, FULL):
        expected = {("test", clip): cell for clip, cell in zip(names, CELLS, strict=True)}
        expected |= {("train", clip): (None, None) for clip in HIDDEN[-2:]}
        assert labels(folder, scored(names), scored(names, "pump"), train) == expected
    (folder / "evaluator" / "ground_truth_domain" / TRUTH).unlink()
    assert [*labels(folder, scored(HIDDEN)).values()] == CELLS
    (folder / "evaluator" / "ground_truth_attributes" / TRUTH).unlink()
    assert [*labels(folder, scored(HIDDEN)).values()] == [(condition, None) for condition, _ in CELLS]
    names = ["id_01_00000000.wav", "id_01_00000001.wav"]  # as the list of 2020 has them
    (folder / LIST).write_text(f"fan\n{names[0]},normal_{names[0]},0\n{names[1]},anomaly_{names[1]},1\n")
    assert [*labels(folder, scored([*HIDDEN, *names])).values()][-2:] == [("normal", "source"), ("anomaly", "source")]


def test_no_file_takes_these_labels_and_what_changed_what_is_missing_and_a_second_year_are_told(folder, caplog):
    write(folder, "ground_truth_data", [0, 0, 0, 0])
    revealed = read_ground_truth(folder).revealed(scored(FULL).replace_schema_metadata({"branch_id": "abc"}))
    assert set(revealed["condition"].to_pylist()) == {"normal"}
    assert "2 labels unlike the table's" in caplog.text
    assert (is_report_only(revealed), metadata_of(revealed)["branch_id"]) == (True, "abc")
    with pytest.raises(ValueError, match="not written"):
        write_table(revealed, folder / "x.parquet")
    for table, message in (
        (scored(HIDDEN[:-1]), "section 0: no score for 1 clip of the ground truth, section_00_0003.wav"),
        (scored([*HIDDEN, "section_00_9999.wav"]), "no ground truth for fan/section_00_9999.wav"),
        (scored(HIDDEN, "pump"), "ground truth of fan section 00; the table has none"),
    ):
        with pytest.raises(InputError, match=message):
            labels(folder, table)
    submitted(folder / "z_of_another_year", TRUTH)
    with pytest.raises(InputError, match=f"year/{TRUTH}: the same machine and section as .*evaluator"):
        read_ground_truth(folder)


def read(path):
    if path.name.startswith(("ground_truth", "eval")):
        return read_ground_truth(path.parent).labels
    return read_scores(path).to_pylist()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (CHALLENGE, b"filename,score\nx.wav,1\n", "rows must be `clip,score`, without a header"),
        ("t.csv", b"clip,score\nx.wav,1\n", "no column machine"),
        ("t.csv", b"machine,clip,score\nfan,x.wav,\n", "score has 1 missing values"),
        ("t.csv", b"", "a header must name the columns"),
        ("t.parquet", b"PAR1 and nothing more", "not a readable Parquet file"),
        ("none.csv", None, "no such score table"),
        ("none.parquet", None, "no such score table"),
        (".", None, "no anomaly_score_"),
        (TRUTH, b"a.wav,yes", "a.wav is 'yes'; 0 means normal, 1 means anomaly"),
        (TRUTH, b"a.wav,1\nb.wav", "line 2 has 1 column; it must be `clip,value`"),
        (TRUTH, b"\xff", "cannot be read as CSV"),
        (LIST, b"id_01_00000000.wav,normal_id_01_00000000.wav,0", "line 1 is neither a machine nor"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, name, text, message):
    with pytest.raises(InputError, match=f"{tmp_path}: no ground_truth_<machine>"):
        read_ground_truth(tmp_path)
    if text is not None:
        (tmp_path / name).write_bytes(text)
    with pytest.raises(InputError, match=f"{tmp_path / name}: .*{message}"):
        read(tmp_path / name)


PARQUET = pa.BufferOutputStream()
pq.write_table(make_table(["fan"], 1, 2), PARQUET)
FILES = {
    "t.parquet": PARQUET.getvalue().to_pybytes(),
    "t.csv": b"machine,clip,split,score\nfan,a.wav,test,1\nfan,b.wav,train,2\n",
    CHALLENGE: b"a.wav,1\nb.wav,2\n",
    TRUTH: b"a.wav,0\nb.wav,1\n",
    LIST: b"fan\nid_01_00000000.wav,normal_id_01_00000000.wav,0\n",
}


@given(st.sampled_from([*FILES]), st.integers(0, 9999), st.binary(max_size=9), st.booleans())
@example("t.csv", 1, b"\xff", False)  # in a column's name
@example("t.parquet", FILES["t.parquet"].index(b"machine"), b"\xff", False)
@example("t.parquet", FILES["t.parquet"].index(b"normal"), b"\xff", False)
@settings(max_examples=120, deadline=None)
def test_of_whatever_bytes_there_is_a_table_or_one_line_that_names_the_file(tmp_path_factory, name, at, put, cut):
    path, whole = tmp_path_factory.mktemp("bytes") / name, FILES[name]
    at %= len(whole) + 1
    path.write_bytes(whole[:at] + put + (b"" if cut else whole[at + len(put) :]))
    message = str(path)
    try:
        assert read(path)
    except InputError as error:
        message = str(error)
    assert str(path.parent) in message
    assert "\n" not in message
