import hashlib

import numpy as np
import pyarrow as pa
import pytest

from scoring.calibration import transductive_normalisation
from scoring.errors import InputError
from scoring.table import SCHEMA, conform, is_transductive, join, metadata_of, read_table, with_scores, write_table
from tests.tables import make_table


def replaced(table, column, values):
    return table.set_column(table.schema.get_field_index(column), column, pa.array(values))


def test_a_table_survives_the_file_whatever_the_order_of_its_rows(tmp_path):
    table = make_table().replace_schema_metadata({"branch_id": "abc"})
    shuffled = table.take(np.random.default_rng(0).permutation(table.num_rows))
    checksums = [write_table(t, tmp_path / name) for t, name in ((table, "a"), (shuffled, "b"))]
    assert set(checksums) == {hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()}
    assert read_table(tmp_path / "b").equals(table)
    assert metadata_of(read_table(tmp_path / "b")) == {"branch_id": "abc"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_a_file_is_replaced_as_a_whole_by_a_good_table_alone(tmp_path):
    path = tmp_path / "t.parquet"
    write_table(make_table(), path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="not a finite number"):
        write_table(replaced(make_table(), "score", [np.nan] * make_table().num_rows), path)
    with open(path, "rb") as reader:  # while a table is written in its place
        write_table(make_table(seed=1), path)
        assert reader.read() == before
    assert path.read_bytes() != before


def test_columns_that_a_table_made_elsewhere_lacks_are_told_by_its_clips_names():
    names = ["section_01_source_test_normal_0000_spd_1.wav", "section_02_target_train_normal_0001.wav", "x.wav"]
    own = pa.table(
        {"clip": pa.array(names, pa.large_string()), "machine": ["fan"] * 3, "score": [1, 2, 3], "more": names}
    )
    table = conform(own)
    assert table.schema.equals(SCHEMA)
    rows = [tuple(row.values())[1:6] for row in table.to_pylist()]
    assert sorted(rows) == [
        (0, "x.wav", "test", None, None),
        (1, names[0], "test", "source", "normal"),
        (2, names[1], "train", "target", "normal"),
    ]
    assert table["calibrated"].null_count == 3
    said = conform(own.append_column("section", pa.array([7] * 3)).append_column("domain", pa.array(["target"] * 3)))
    assert (set(said["section"].to_pylist()), set(said["domain"].to_pylist())) == ({7}, {"target"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns("score"), "no column score"),
        (lambda t: replaced(t, "score", ["high"] * t.num_rows), "wrong type"),
        (lambda t: replaced(t, "split", ["dev"] * t.num_rows), "split is 'dev'"),
        (lambda t: replaced(t, "domain", ["here"] * t.num_rows), "domain is 'here'"),
        (lambda t: replaced(t, "condition", ["bad"] * t.num_rows), "condition is 'bad'"),
        (lambda t: replaced(t, "machine", [None] * t.num_rows), "machine has .* missing"),
        (lambda t: replaced(t, "calibrated", [np.inf] * t.num_rows), "calibrated of .* not a finite"),
        (lambda t: t.slice(0, 0), "no rows"),
        (lambda t: pa.concat_tables([t, t.slice(3, 1)]), "more than once"),
        (lambda t: t.append_column("score", t["calibrated"]), "column score appears twice"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    with pytest.raises(InputError, match=f"^mine.parquet: .*{message}"):
        conform(change(make_table()), "mine.parquet")


def test_join_is_by_key_and_hides_labels():
    a, b = make_table(seed=1), make_table(seed=2)
    shuffled = b.take(np.random.default_rng(0).permutation(b.num_rows))
    keys, values = join({"a": a, "b": shuffled}, "ab")
    assert keys.column_names == ["machine", "section", "split", "clip", "domain"]
    np.testing.assert_array_equal(values, [a["calibrated"], b["calibrated"]])
    np.testing.assert_array_equal(join({"a": a, "b": b}, "ba", "score")[1], [b["score"], a["score"]])


@pytest.mark.parametrize(
    ("b", "message"),
    [
        (make_table(["fan"]), "b has no machine pump, which a has"),
        (make_table(["fan", "pump", "valve"]), "a has no machine valve, which b has"),
        (make_table().slice(2), r"b lacks fan/test/.* and 1 more that a has"),
        (conform(pa.concat_tables([make_table(), make_table(["fan"], section=1)])), "a lacks fan/.* and 35 more"),
        (replaced(make_table(), "calibrated", pa.nulls(72, pa.float64())), "b: 72 rows have no calibrated score"),
        (replaced(make_table(), "domain", ["source"] * 72), "domain of target_.* is target in a and source in b"),
    ],
)
def test_tables_that_do_not_fit_are_named(b, message):
    with pytest.raises(InputError, match=message):
        join({"a": make_table(), "b": b}, "ab", agreeing=["domain"])
    with pytest.raises(InputError, match="no score table for c"):
        join({"a": make_table(), "b": b}, "abc")


def test_the_transductive_mark_stays_with_all_that_is_made_from_a_table(tmp_path):
    clean = make_table(train=0)
    marked = transductive_normalisation(clean)
    write_table(marked, tmp_path / "t.parquet")
    keys, _ = join({"a": clean.set_column(7, "calibrated", clean["score"]), "b": marked}, "ab")
    other = with_scores(marked, clean["score"].to_numpy(), None, {"more": "x"})
    assert not is_transductive(clean)
    for table in (marked, read_table(tmp_path / "t.parquet"), conform(marked), keys, other):
        assert is_transductive(table)
    assert metadata_of(other) == {"more": "x", "transductive": "true"}
