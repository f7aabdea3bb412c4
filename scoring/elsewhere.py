"""Score tables made elsewhere: the challenge's CSV files, CSV files with a header, Parquet files of pandas."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from scoring.errors import InputError
from scoring.table import SCHEMA, conform, file_sha256, read_table

# Baselines write anomaly_score_DCASE2023T2fan_section_00_test_seed1_Eval.csv and anomaly_score_fan_id_00.csv.
_CHALLENGE_NAME = re.compile(
    r"anomaly_score_(?:DCASE\d{4}T2)?(?P<machine>.+?)_(?:section|id)_(?P<section>\d\d)(?:_.*)?\.csv"
)
_ABSENT = ["", "None", "null", "nan", "NaN"]


def read_scores(path: str | Path) -> pa.Table:
    """A checked score table, of whatever form.

    Parameters
    ----------
    path: a Parquet file; a CSV file with a header; `anomaly_score_<machine>_section_<NN>_test.csv` without one; or a
        folder of the latter, one for each machine and section. `scoring.table.conform` says which columns are needed

    Raises InputError if there is no such table, or it fails a check.
    """
    path = Path(path)
    if path.is_dir():
        parts = [_challenge_file(file) for file in sorted(path.iterdir()) if _CHALLENGE_NAME.fullmatch(file.name)]
        if not parts:
            raise InputError(f"{path}: no anomaly_score_<machine>_section_<NN>_test.csv in this folder")
        return conform(pa.concat_tables(parts), str(path))
    if path.suffix.lower() != ".csv":
        return read_table(path)
    return conform(_challenge_file(path) if _CHALLENGE_NAME.fullmatch(path.name) else _with_header(path), str(path))


def table_path(folder: Path, name: str) -> Path:
    """Where the table of a name lies: a Parquet or CSV file, or a folder; of a Parquet file if there is none."""
    forms = [folder / f"{name}.parquet", folder / f"{name}.csv", folder / name]
    return next((path for path in forms if path.exists()), forms[0])


def tables_in(folder: Path) -> dict[str, Path]:
    """Tables in a folder by name."""
    return {table_name(path): path for path in sorted(folder.iterdir()) if is_table(path)}


def table_name(path: Path) -> str:
    """What the table in a file or folder is called."""
    return (path.name or path.resolve().name) if path.is_dir() else path.stem


def table_sha256(path: Path) -> str:
    """SHA-256 of a table's file, or of those in its folder."""
    if not path.is_dir():
        return file_sha256(path)
    digests = [f"{file.name} {file_sha256(file)}" for file in sorted(path.iterdir()) if file.is_file()]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def is_table(path: Path) -> bool:
    """Whether a path is a table: a Parquet or CSV file, or a folder of a system's challenge CSV files."""
    if path.is_dir():
        return any(_CHALLENGE_NAME.fullmatch(file.name) for file in path.iterdir())
    return path.suffix.lower() in (".parquet", ".csv")


def _challenge_file(path: Path) -> pa.Table:
    """Rows `clip,score`; machine and section are in the file's name."""
    match = _CHALLENGE_NAME.fullmatch(path.name)
    assert match is not None
    table = _csv(path, ["clip", "score"], "rows must be `clip,score`, without a header")
    bare = pc.replace_substring_regex(table["clip"], r"^.*[/\\]", "")  # some write whole paths
    table = table.set_column(0, "clip", bare)
    for column, value in (("machine", match["machine"]), ("section", int(match["section"]))):
        table = table.append_column(column, pa.array([value] * table.num_rows, SCHEMA.field(column).type))
    return table


def _with_header(path: Path) -> pa.Table:
    return _csv(path, None, "a header must name the columns machine, clip, score, and maybe others of a score table")


def _csv(path: Path, names: list[str] | None, form: str) -> pa.Table:
    try:
        return pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(column_names=names),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types={field.name: field.type for field in SCHEMA}, null_values=_ABSENT, strings_can_be_null=True
            ),
        )
    except FileNotFoundError:
        raise InputError(f"{path}: no such score table") from None
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        raise InputError(f"{path}: {form} ({str(error).splitlines()[0]})") from None
