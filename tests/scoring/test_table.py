import numpy as np
import pyarrow as pa
import pytest

from scoring.calibration import transductive_normalisation
from scoring.errors import InputError
from scoring.table import SCHEMA, conform, is_transductive, join, metadata_of, read_table, with_scores, write_table
from tests.tables import make_table


def replaced(table, column, values):
    return table.set_column(table.schema.get_field_index(column), column, pa.array(values))


def test_a_table_survives_the_file(tmp_path):
    table = make_table().replace_schema_metadata({"branch_id": "abc"})
    write_table(table, tmp_path / "t.parquet")
    back = read_table(tmp_path / "t.parquet")
    assert back.equals(table)
    assert metadata_of(back) == {"branch_id": "abc"}
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]


def test_row_order_does_not_reach_the_file(tmp_path):
    table = make_table()
    shuffled = table.take(np.random.default_rng(0).permutation(table.num_rows))
    assert write_table(table, tmp_path / "a") == write_table(shuffled, tmp_path / "b")


def test_a_bad_table_leaves_the_old_file(tmp_path):
    path = tmp_path / "t.parquet"
    write_table(make_table(), path)
    before = path.read_bytes()
    bad = replaced(make_table(), "score", [np.nan] * make_table().num_rows)
    with pytest.raises(InputError, match="not a finite number"):
        write_table(bad, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]


def test_tables_made_elsewhere_are_read(tmp_path):
    table = make_table(train=0).select(["clip", "machine", "section", "domain", "condition", "score"])
    table = table.set_column(0, "clip", table["clip"].cast(pa.large_string())).append_column("extra", table["score"])
    pa.parquet.write_table(table, tmp_path / "t.parquet")
    back = read_table(tmp_path / "t.parquet")
    assert back.schema.equals(SCHEMA)
    assert set(back["split"].to_pylist()) == {"test"}
    assert back["calibrated"].null_count == back.num_rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns("score"), "no column score"),
        (lambda t: replaced(t, "score", ["high"] * t.num_rows), "wrong type"),
        (lambda t: replaced(t, "split", ["dev"] * t.num_rows), "split is 'dev'"),
        (lambda t: replaced(t, "condition", ["bad"] * t.num_rows), "condition is 'bad'"),
        (lambda t: replaced(t, "machine", [None] * t.num_rows), "machine has .* missing"),
        (lambda t: replaced(t, "calibrated", [np.inf] * t.num_rows), "calibrated of .* not a finite"),
        (lambda t: t.slice(0, 0), "no rows"),
        (lambda t: pa.concat_tables([t, t.slice(3, 1)]), "more than once"),
        (lambda t: t.append_column("score", t["calibrated"]), "column score appears twice"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    with pytest.raises(InputError, match=message) as raised:
        conform(change(make_table()), "mine.parquet")
    assert "mine.parquet" in str(raised.value)


def test_files_that_are_no_tables(tmp_path):
    with pytest.raises(InputError, match="no such score table"):
        read_table(tmp_path / "none.parquet")
    (tmp_path / "half.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        read_table(tmp_path / "half.parquet")


def test_join_is_by_key_and_hides_labels():
    a, b = make_table(seed=1), make_table(seed=2)
    keys, values = join({"a": a, "b": b}, "ab")
    assert "condition" not in keys.column_names
    assert values.shape == (2, a.num_rows)
    np.testing.assert_array_equal(values[1], b["calibrated"])


def test_join_names_what_is_missing():
    table = make_table()
    with pytest.raises(InputError, match="b has no machine pump"):
        join({"a": table, "b": make_table(["fan"])}, "ab")
    with pytest.raises(InputError, match=r"a lacks fan/test/.* and 1 more that b has"):
        join({"a": table.slice(2), "b": table}, "ab")


def test_join_refuses_uncalibrated_tables():
    table = replaced(make_table(), "calibrated", pa.nulls(make_table().num_rows, pa.float64()))
    with pytest.raises(InputError, match="no calibrated score"):
        join({"a": table}, "a")


def test_the_transductive_mark_stays_with_all_that_is_made_from_a_table(tmp_path):
    clean = make_table(train=0).replace_schema_metadata({"branch_id": "abc"})
    marked = transductive_normalisation(clean)
    assert metadata_of(marked) == {"branch_id": "abc", "transductive": "true"}
    assert not is_transductive(clean)
    write_table(marked, tmp_path / "t.parquet")
    keys, _ = join({"a": clean.set_column(7, "calibrated", clean["score"]), "b": marked}, "ab")
    other = with_scores(marked, clean["score"].to_numpy(), None, {})
    for table in (marked, read_table(tmp_path / "t.parquet"), conform(marked), keys, other):
        assert is_transductive(table)
    assert metadata_of(keys) == {"transductive": "true"}
