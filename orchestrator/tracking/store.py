"""The database that a store's URI means."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote


def sqlite_uri(database: Path, query: str = "") -> str:
    """The store's URI of a database; a `?` or `%` in its path is quoted, else another file would be opened."""
    path = str(database.resolve())
    quoted = path.replace("%", "%25").replace("?", "%3F")
    # MLflow makes the folder of a path that it does not unquote, unless the driver is named.
    dialect = "sqlite" if quoted == path else "sqlite+pysqlite"
    return f"{dialect}:///{quoted}{query and '?'}{query}"


def database_of(uri: str) -> Path:
    """The file of a store's URI `sqlite:///…`; a `#` in it is one, as SQLAlchemy has it."""
    return Path(unquote(uri.partition(":///")[2].partition("?")[0]))
