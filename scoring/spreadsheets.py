"""CSV files that people write, as spreadsheets export them: with commas, semicolons or tabs, capitals, empty cells."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Collection, Iterator
from itertools import zip_longest
from pathlib import Path

from scoring.errors import InputError

_SEPARATORS = ",;\t|"


def read_rows(
    path: Path, required: Collection[str], allowed: Collection[str] | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a CSV file by the names in its first line, in lower case, each with its line; empty rows are none.

    required: columns that must be there
    allowed: those that may; None allows any

    Raises InputError naming the line if the file cannot be read, its first line lacks a column or has one that is not
    allowed, or a row has more cells than that.
    """
    try:
        content = path.read_bytes()
        # Excel's "Unicode Text" is UTF-16.
        encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
        text = content.decode(encoding)
        if "\0" in text:
            raise csv.Error("a zero byte")
        yield from _rows(path, text, required, allowed)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read as CSV ({error}); save it as CSV UTF-8") from None
    except (OSError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV ({error})") from None


def _rows(
    path: Path, text: str, required: Collection[str], allowed: Collection[str] | None
) -> Iterator[tuple[int, dict[str, str]]]:
    hint = text.lower().startswith("sep=")  # tells Excel the separator
    if hint:
        text = text.partition("\n")[2]
    readers = {separator: csv.reader(io.StringIO(text, newline=""), delimiter=separator) for separator in _SEPARATORS}
    headers = {sep: [cell.strip().lower() for cell in next(reader, [])] for sep, reader in readers.items()}
    separator = max(_SEPARATORS, key=lambda sep: len({*required} & {*headers[sep]}))
    header, reader = headers[separator], readers[separator]
    begin = header[:1] == [""]  # pandas writes row numbers there
    missing = [column for column in required if column not in header]
    unknown = [column for column in header if column and allowed and column not in allowed]
    twice = [column for column in dict.fromkeys(header) if column and header.count(column) > 1]
    for fault, columns in (("no column", missing), ("unknown column", unknown), ("twice the column", twice)):
        if columns:
            may = (
                f"; the columns are {', '.join(allowed)}, all but {', '.join(required)} as you like" if allowed else ""
            )
            first = text.partition("\n")[0].strip()
            raise InputError(f"{path}: {fault} {', '.join(columns)} in its first line, which is {first!r}{may}")
    for cells in reader:
        pairs = [(name, cell.strip()) for name, cell in zip_longest(header[begin:], cells[begin:], fillvalue="")]
        if any(cell and not name for name, cell in pairs):
            raise InputError(
                f"{path}, line {reader.line_num + hint}: a cell without a column: {separator.join(cells)!r}; name its "
                f"column, or put a cell that holds {separator!r} in quotes"
            )
        if any(cell for _, cell in pairs):
            yield reader.line_num + hint, {name: cell for name, cell in pairs if name}
