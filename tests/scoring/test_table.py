"""The score table: names of clips, calibration, files that are whole or not at all; tables and labels of others."""

import hashlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scoring.atomic import atomic, atomic_folder
from scoring.calibration import calibrate, recalibrate, transductive_normalisation
from scoring.clip_names import ClipName, is_of_2020, parse_clip_name
from scoring.elsewhere import is_table, read_scores, table_name, table_path, table_sha256, tables_in
from scoring.errors import PLACE_ERRNOS, InputError, place_error
from scoring.ground_truth import read_ground_truth
from scoring.table import (
    SCHEMA,
    conform,
    is_report_only,
    is_transductive,
    join,
    metadata_of,
    read_table,
    with_scores,
    write_table,
)
from tests.tables import make_table


def write_file(path, text, then=lambda: None):
    with atomic(path) as temporary:
        temporary.write_text(text)
        then()


def write_folder(path, text, then=lambda: None):
    with atomic_folder(path) as new:
        (new / "banks").mkdir()
        (new / "a").write_text(text)
        (new / "banks" / "b").write_text(text)
        then()


both = pytest.mark.parametrize("write", [write_file, write_folder])


def texts(path):
    return {p.read_text() for p in [path, *path.rglob("*")] if p.is_file()}


@both
def test_the_old_one_stays_until_the_block_ends_without_an_error_and_of_writers_at_once_one_remains(tmp_path, write):
    path, seen = tmp_path / "result", []
    write(path, "old")
    with pytest.raises(FileNotFoundError):
        write(path, "half", then=(tmp_path / "absent").read_text)
    assert texts(tmp_path) == {"old"}
    write(path, "new", then=lambda: seen.append(texts(path)))
    assert (seen, texts(path), list(tmp_path.iterdir())) == ([{"old"}], {"new"}, [path])
    with ThreadPoolExecutor(8) as writers:
        list(writers.map(lambda number: write(path, str(number)), range(100)))
    assert (len(texts(tmp_path)), list(tmp_path.iterdir())) == (1, [path])


def test_the_old_folder_is_whole_at_every_rename_and_comes_back_unless_the_new_one_arrives(tmp_path, monkeypatch):
    path, whole, rename = tmp_path / "model", [], os.replace
    write_folder(path, "old")

    def refused(source, target):
        whole.append({"old"} in [texts(folder) for folder in tmp_path.iterdir()])
        if "new" in texts(source):
            raise PermissionError(target)
        rename(source, target)

    def disturbed(source, target):
        if target == path:
            monkeypatch.undo()
            write_folder(path, "of another writer")
        rename(source, target)

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(PermissionError):
        write_folder(path, "new")
    assert whole == [True, True, True]
    assert texts(tmp_path) == texts(path) == {"old"}
    monkeypatch.setattr(os, "replace", disturbed)
    write_folder(path, "new")
    assert texts(tmp_path) == {"new"}


@both
def test_the_content_is_on_the_disk_before_the_name_and_the_name_before_the_end(tmp_path, monkeypatch, write):
    path, calls = tmp_path / "result", []
    for call in (os.fsync, os.replace):

        def noted(what, *more, call=call):
            calls.append((call, os.stat(what).st_ino))
            call(what, *more)

        monkeypatch.setattr(os, call.__name__, noted)
    write(path, "new")
    monkeypatch.undo()
    at = calls.index((os.replace, path.stat().st_ino))
    assert set(calls[:at]) == {(os.fsync, part.stat().st_ino) for part in [path, *path.rglob("*")]}
    assert calls[at + 1 :] == [(os.fsync, tmp_path.stat().st_ino)]


def test_a_file_system_may_refuse_to_flush_folders_and_is_named_with_the_remedy_otherwise(tmp_path, monkeypatch):
    def refused(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError("Invalid argument")

    monkeypatch.setattr(os, "fsync", refused)
    write_folder(tmp_path / "model", "new")
    assert texts(tmp_path) == {"new"}
    with pytest.raises(OSError, match="directory") as raised:
        tmp_path.write_text("")
    assert raised.value.errno in PLACE_ERRNOS
    assert place_error(raised.value) == f"{tmp_path}: Is a directory; give another path"
    with pytest.raises(OSError, match="written") as raised, atomic(tmp_path / "new") as temporary:
        raise OSError("2 of 5 written")  # as NumPy does
    assert place_error(raised.value) == f"{tmp_path}/new: 2 of 5 written; make room, or give another path"
    with pytest.raises(FileNotFoundError) as raised, atomic(tmp_path / "no" / "new") as temporary:
        temporary.touch()
    assert raised.value.filename == f"{tmp_path}/no/new"


def replaced(table, column, values):
    return table.set_column(table.schema.get_field_index(column), column, pa.array(values))


WORDS = st.text("aZ09-", min_size=1)
ATTRIBUTES = st.lists(st.tuples(WORDS, WORDS), max_size=3).map(tuple)
SAID = [st.sampled_from([None, *words]) for words in (("source", "target"), ("train", "test"), ("normal", "anomaly"))]


@given(st.builds(ClipName, st.integers(0, 120), *SAID, ATTRIBUTES), st.integers(0, 99_999))
def test_a_name_that_was_put_together_is_read(parts, number):
    name = parts.file_name(number)
    assert name.startswith(f"section_{parts.section:02d}_")
    assert (parse_clip_name(name), is_of_2020(name)) == (parts, False)


def test_names_of_other_years_are_read_and_tell_columns_that_a_table_made_elsewhere_lacks():
    odd = parse_clip_name("section_01_0003_spd_1_ambient.wav")
    assert odd == (1, None, None, None, (("spd", "1"), ("", "ambient")))
    assert not any(parse_clip_name(name) for name in ("section_0_1.wav", "section_00_0001.flac", "id_01_0001.wav"))
    names = ["section_01_source_test_normal_0000_spd_1.wav", "section_02_target_train_normal_0001.wav", "x.wav"]
    clips = pa.array(names, pa.large_string())
    own = pa.table({"clip": clips, "machine": ["fan"] * 3, "score": [1, 2, 3], "more": names})
    table = conform(own)
    assert table.schema.equals(SCHEMA)
    assert [(*row.values(),)[1:] for row in table.to_pylist()] == [
        (0, "x.wav", "test", None, None, 3, None),
        (1, names[0], "test", "source", "normal", 1, None),
        (2, names[1], "train", "target", "normal", 2, None),
    ]
    said = conform(own.append_column("section", pa.array([7] * 3)).append_column("domain", pa.array(["target"] * 3)))
    assert (set(said["section"].to_pylist()), set(said["domain"].to_pylist())) == ({7}, {"target"})


def test_a_table_survives_the_file_is_joined_by_key_without_labels_and_keeps_its_transductive_mark(tmp_path):
    table = make_table().replace_schema_metadata({"branch_id": "abc"})
    shuffled = table.take(np.random.default_rng(0).permutation(table.num_rows))
    checksums = [write_table(t, tmp_path / name) for t, name in ((table, "a"), (shuffled, "b"))]
    before = (tmp_path / "a").read_bytes()
    assert set(checksums) == {hashlib.sha256(before).hexdigest()}
    assert read_table(tmp_path / "b").equals(table)
    assert metadata_of(read_table(tmp_path / "b")) == {"branch_id": "abc"}
    with pytest.raises(InputError, match="not a finite number"):
        write_table(replaced(table, "score", [np.nan] * table.num_rows), tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == before
    with open(tmp_path / "b", "rb") as reader:  # while a table is written in its place
        write_table(make_table(seed=1), tmp_path / "b")
        assert reader.read() == before != (tmp_path / "b").read_bytes()
    clean, b = make_table(train=0, seed=1), make_table(train=0, seed=2)
    a = clean.set_column(7, "calibrated", clean["score"])
    marked = transductive_normalisation(b)
    shuffled = marked.take(np.random.default_rng(0).permutation(b.num_rows))
    keys, values = join({"a": a, "b": shuffled}, "ab")
    assert keys.column_names == ["machine", "section", "split", "clip", "domain"]
    np.testing.assert_array_equal(values, [a["calibrated"], marked["calibrated"]])
    np.testing.assert_array_equal(join({"a": a, "b": b}, "ba", "score")[1], [b["score"], a["score"]])
    write_table(marked, tmp_path / "t.parquet")
    other = with_scores(marked, b["score"].to_numpy(), None, {"more": "x"})
    made = [b, marked, read_table(tmp_path / "t.parquet"), conform(marked), keys, other]
    assert [is_transductive(table) for table in made] == [False] + [True] * 5
    assert metadata_of(other) == {"more": "x", "transductive": "true"}


CLIPS = conform(pa.concat_tables([make_table(), make_table(["fan"], section=1, seed=1)]))
SCORE, MACHINE, SECTION, SPLIT = (CLIPS[name].to_numpy() for name in ("score", "machine", "section", "split"))


@pytest.mark.parametrize("split", ["train", "test"])
def test_calibration_is_in_standard_deviations_of_the_training_clips_or_transductively_of_the_test_clips(split):
    score, expected = SCORE * np.where(MACHINE == "fan", 1, 50) + 7, np.empty(len(SCORE))
    for machine, section in (("fan", 0), ("fan", 1), ("pump", 0)):
        group = (machine == MACHINE) & (section == SECTION)
        reference = score[group & (split == SPLIT)]
        expected[group] = (score[group] - np.mean(reference)) / np.std(reference, ddof=1)
    table = transductive_normalisation(with_scores(CLIPS, score, None, {"branch_id": "abc"}))
    assert table.schema.metadata == {b"branch_id": b"abc", b"transductive": b"true"}
    found = calibrate(CLIPS, score) if split == "train" else table["calibrated"].to_numpy()
    np.testing.assert_allclose(found, expected)


def test_a_stored_calibration_that_does_not_follow_from_the_scores_is_named():
    fresh = calibrate(CLIPS, SCORE)
    nearly, edited = fresh + 1e-9, fresh + 1e-3 * (MACHINE == "pump")
    for stored, stale in ((nearly, []), (edited, ["pump"]), (np.where(MACHINE == "pump", np.nan, 7), [])):
        calibrated, named = recalibrate(with_scores(CLIPS, SCORE, stored, {}))
        assert named == stale
        np.testing.assert_array_equal(calibrated, fresh)


TABLE, FIVE = make_table(), make_table(["fan"], train=5)
FEW = FIVE["score"].to_numpy()


def joined(b, names="ab"):
    return join({"a": TABLE, "b": b}, names, agreeing=["domain"])


def test_what_is_wrong_is_named():
    for call, message in (
        (lambda: conform(TABLE.drop_columns("score"), "mine"), "^mine: no column score"),
        (lambda: conform(replaced(TABLE, "score", ["high"] * 72), "mine"), "^mine: .*wrong type"),
        (lambda: conform(replaced(TABLE, "split", ["dev"] * 72), "mine"), "^mine: split is 'dev'"),
        (lambda: conform(replaced(TABLE, "domain", ["here"] * 72), "mine"), "^mine: domain is 'here'"),
        (lambda: conform(replaced(TABLE, "machine", [None] * 72), "mine"), "^mine: .*machine has 72 missing"),
        (lambda: conform(replaced(TABLE, "calibrated", [np.inf] * 72), "mine"), "^mine: calibrated of .* not a fin"),
        (lambda: conform(TABLE.slice(0, 0), "mine"), "^mine: .*no rows"),
        (lambda: conform(pa.concat_tables([TABLE, TABLE.slice(3, 1)]), "mine"), "^mine: .*more than once"),
        (lambda: conform(TABLE.append_column("score", TABLE["score"]), "mine"), "^mine: column score appears twice"),
        (lambda: calibrate(make_table(["fan"], train=1), np.zeros(25)), "machine fan section 0 has 1 training clip"),
        (lambda: calibrate(FIVE, FEW * 0 + 0.1), "all 5 training scores are equal"),
        (lambda: calibrate(FIVE, FEW * 1e-200), r"vary by only .*; subtract an offset or multiply them"),
        (lambda: calibrate(FIVE, FEW * 1e-3 + 1e12), r"vary by only .*; subtract an offset or multiply them"),
        (lambda: transductive_normalisation(make_table(["fan"], per_cell=0)), "fan section 0 has 0 test clips"),
        (lambda: joined(make_table(["fan"])), "b has no machine pump, which a has"),
        (lambda: joined(TABLE.slice(2)), r"b lacks 2 clips that a has, fan/test/"),
        (lambda: joined(pa.concat_tables([TABLE, make_table(["fan"], section=1)])), "a lacks 36 clips that b has"),
        (lambda: joined(replaced(TABLE, "calibrated", pa.nulls(72, pa.float64()))), "no calibrated score in 72"),
        (lambda: joined(replaced(TABLE, "domain", ["source"] * 72)), "of target_.* is target in a and source in b"),
        (lambda: joined(TABLE, "abc"), "no score table for c"),
    ):
        with pytest.raises(InputError, match=message):
            call()


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


def test_tables_are_found_by_name_a_folder_of_many_is_one_and_csv_and_what_pandas_writes_are_read(tmp_path):
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
