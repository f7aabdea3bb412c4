"""The score table: one row per clip, one Parquet file per (branch, detector) and per fused system.

A table is a plain `pyarrow.Table` with the columns of `SCHEMA`, sorted by `KEY`. What was computed from
what is kept in the schema metadata.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scoring.atomic import atomic
from scoring.clip_names import parse_clip_name
from scoring.errors import InputError, counted

SCHEMA = pa.schema(
    [
        ("machine", pa.string()),
        ("section", pa.int64()),
        ("clip", pa.string()),
        ("split", pa.string()),
        ("domain", pa.string()),
        ("condition", pa.string()),
        ("score", pa.float64()),
        ("calibrated", pa.float64()),
    ]
)
KEY = ("machine", "section", "split", "clip")

_ALLOWED = {
    "split": ("train", "test"),
    "domain": ("source", "target", None),
    "condition": ("normal", "anomaly", None),
}
TRANSDUCTIVE = "transductive"
REPORT_ONLY = "report_only"
# What stands in a table made elsewhere where it lacks a column and the clip's name does not say.
_FILLED = {"section": 0, "split": "test", "domain": None, "condition": None, "calibrated": None}


def conform(table: pa.Table, name: str = "score table") -> pa.Table:
    """The table with exactly the columns of `SCHEMA`, sorted by `KEY`, after every check.

    Columns that a table made elsewhere lacks are read from the challenge's clip names: section (else 0), split (else
    test), domain and condition (else null). A missing `calibrated` is null; further columns are dropped.

    Raises InputError that names `name` and what is wrong: a missing column, a wrong type, an unknown value, a duplicate
    key, a missing or non-finite score, or no rows.
    """
    try:
        names = table.column_names
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: the columns' names are not UTF-8; write it anew ({error})") from None
    twice = [column for column in SCHEMA.names if names.count(column) > 1]
    if twice:
        raise InputError(f"{name}: column {', '.join(twice)} appears twice; drop or rename one")
    table = _filled(table)
    missing = [column for column in SCHEMA.names if column not in table.column_names]
    if missing:
        raise InputError(f"{name}: no column {', '.join(missing)}; a score table has {', '.join(SCHEMA.names)}")
    metadata = table.schema.metadata
    try:
        table = table.select(SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"{name}: a column has the wrong type: {error}") from None
    _check_rows(table, name)
    return table.sort_by([(column, "ascending") for column in KEY]).replace_schema_metadata(metadata)


def _filled(table: pa.Table) -> pa.Table:
    absent = [column for column in _FILLED if column not in table.column_names]
    if not absent:
        return table
    clips = table["clip"].to_pylist() if "clip" in table.column_names else [None] * table.num_rows
    names = [parse_clip_name(clip) if isinstance(clip, str) else None for clip in clips]
    for column in absent:
        values = [getattr(name, column, None) for name in names]
        values = [_FILLED[column] if value is None else value for value in values]
        table = table.append_column(column, pa.array(values, SCHEMA.field(column).type))
    return table


def _check_rows(table: pa.Table, name: str) -> None:
    if table.num_rows == 0:
        raise InputError(f"{name}: the table has no rows")
    for column in (*KEY, "score"):
        if table[column].null_count:
            raise InputError(f"{name}: column {column} has {table[column].null_count} missing values")
    for column, allowed in _ALLOWED.items():
        unknown = set(pc.unique(table[column]).to_pylist()) - set(allowed)
        if unknown:
            raise InputError(f"{name}: {column} is {sorted(map(str, unknown))[0]!r}; allowed: {allowed}")
    for column in ("score", "calibrated"):
        finite = pc.fill_null(pc.is_finite(table[column]), True).to_numpy(zero_copy_only=False)
        if not finite.all():
            clip = table["clip"][int(np.flatnonzero(~finite)[0])].as_py()
            raise InputError(f"{name}: {column} of {clip} is not a finite number")
    counts = table.group_by(list(KEY)).aggregate([("score", "count")])
    twice = counts.filter(pc.greater(counts["score_count"], 1))
    if twice.num_rows:
        raise InputError(f"{name}: {_describe(twice, 0)} is in the table more than once")


def _describe(table: pa.Table, row: int) -> str:
    machine, section, split, clip = (table[column][row].as_py() for column in KEY)
    return f"{machine}/{split}/{clip} (section {section})"


def write_table(table: pa.Table, path: str | Path) -> str:
    """Check `table`, write it to `path` through a temporary name, and return the file's SHA-256.

    Raises ValueError if the table has labels for reports only: a search could read them from a file.
    """
    path = Path(path)
    if is_report_only(table):
        raise ValueError(f"{path}: a table with ground truth for reports is not written")
    table = conform(table, path.name)
    with atomic(path) as temporary:
        pq.write_table(table, temporary)
        return file_sha256(temporary)


def read_table(path: str | Path) -> pa.Table:
    """The checked score table in the Parquet file `path`.

    Raises InputError if the file is absent, is no Parquet file, or fails a check of `conform`.
    """
    try:
        table = pq.ParquetFile(path).read()
        table.validate(full=True)  # whose pages have no checksums: text may be none
    except FileNotFoundError:
        raise InputError(f"{path}: no such score table") from None
    except (pa.ArrowInvalid, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None
    return conform(table, str(path))


def file_sha256(*paths: str | Path) -> str:
    """SHA-256 of a file's content, or of several files' one after the other, in hex digits.

    They are read once in this process, unless one is replaced or has another size or time of change.
    """
    states = ((path, os.stat(path)) for path in paths)
    return _sha256(*((os.fspath(path), s.st_ino, s.st_size, s.st_mtime_ns) for path, s in states))


@cache
def _sha256(*states: tuple[str, int, int, int]) -> str:
    digest = hashlib.sha256()
    for path, *_ in states:
        with open(path, "rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def metadata_of(table: pa.Table) -> dict[str, str]:
    """The table's metadata as text: branch_id, detector, dataset fingerprint, …"""
    return {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}


def is_transductive(table: pa.Table) -> bool:
    """Whether statistics of test rows have reached the table's scores; the mark goes with every table made from it."""
    return metadata_of(table).get(TRANSDUCTIVE) == "true"


def is_report_only(table: pa.Table) -> bool:
    """Whether the table's labels came later, as ground truth, and are for figures alone."""
    return metadata_of(table).get(REPORT_ONLY) == "true"


def _marked(metadata: Mapping[str, str], *sources: pa.Table) -> dict[str, str]:
    """The metadata of what is made from the sources."""
    marks = {m: "true" for m in (TRANSDUCTIVE, REPORT_ONLY) if any(metadata_of(s).get(m) == "true" for s in sources)}
    return {**metadata, **marks}


def with_scores(
    table: pa.Table, score: NDArray[np.float64], calibrated: NDArray[np.float64] | None, metadata: Mapping[str, str]
) -> pa.Table:
    """The rows of `table` with other scores, each of shape (rows,), and other metadata; marks stay."""
    columns = [table[name] for name in SCHEMA.names[:-2]]
    values = [score, np.full(len(score), np.nan) if calibrated is None else calibrated]
    columns += [pa.array(v, pa.float64(), from_pandas=True) for v in values]
    return pa.table(columns, schema=SCHEMA).replace_schema_metadata(_marked(metadata, table))


def join(
    tables: Mapping[str, pa.Table], names: Sequence[str], column: str = "calibrated", agreeing: Sequence[str] = ()
) -> tuple[pa.Table, NDArray[np.float64]]:
    """One column of the named tables, joined by key; one is held at a time, if `tables` reads each when asked for it.

    agreeing: columns that must be the same in all tables

    Returns
    -------
    keys: the first table without its scores and without `condition`; a label cannot leave through here. Its
        metadata hold nothing but the transductive and the report-only mark, if any of the tables has them
    values: (tables, rows) float64, in the order of `names` and `keys`

    Raises InputError if a table is not there, lacks a clip or a machine that another has, has no values in `column`, or
    says something else of a clip than another.
    """
    if absent := [name for name in names if name not in tables]:
        raise InputError(
            f"no score table for {', '.join(absent)}; train these branches or leave them out of the system"
        )
    first = conform(tables[names[0]], names[0])
    keys, values = first.select([*KEY, "domain"]), np.empty((len(names), first.num_rows))
    for i, name in enumerate(names):
        table = conform(tables[name], name) if i else first
        _check_same_rows(names[0], first, name, table)
        if table[column].null_count:
            raise InputError(
                f"{name}: no {column} score in {counted(table[column].null_count, 'row')}; "
                "it is made from training rows, and this table has none for them"
            )
        for other in agreeing:
            _check_same_values(other, names[0], first, name, table)
        values[i] = table[column].to_numpy()
        keys = keys.replace_schema_metadata(_marked({}, keys, table))
    return keys, values


def _check_same_rows(first_name: str, first: pa.Table, name: str, table: pa.Table) -> None:
    if first.select(KEY).equals(table.select(KEY)):
        return
    for here, there, of_here, of_there in ((first_name, name, first, table), (name, first_name, table, first)):
        if lost := set(of_here["machine"].to_pylist()) - set(of_there["machine"].to_pylist()):
            raise InputError(f"{there} has no machine {min(lost)}, which {here} has; score it or leave it out of both")
        absent = of_here.select(KEY).join(of_there.select(KEY), list(KEY), join_type="left anti")
        if absent.num_rows:
            clips = counted(absent.num_rows, "clip")
            raise InputError(f"{there} lacks {clips} that {here} has, {_describe(absent, 0)} among them")


def _check_same_values(column: str, first_name: str, first: pa.Table, name: str, table: pa.Table) -> None:
    if not table[column].equals(first[column]):
        clips = zip(first["clip"].to_pylist(), first[column].to_pylist(), table[column].to_pylist(), strict=True)
        clip, here, there = next(row for row in clips if row[1] != row[2])
        raise InputError(f"the {column} of {clip} is {here} in {first_name} and {there} in {name}")


def groups(table: pa.Table) -> Iterator[tuple[str, int, NDArray[np.bool_]]]:
    """Each machine and section with the mask (rows,) of its rows, in order."""
    machine, section = rows_of(table, ["machine", "section"])
    for m, s in sorted(set(zip(machine, section, strict=True))):
        yield m, int(s), (machine == m) & (section == s)


def rows_of(table: pa.Table, columns: Sequence[str]) -> list[NDArray[Any]]:
    """Columns of a table as NumPy arrays; strings as objects, null as None."""
    return [table[column].to_numpy() for column in columns]
