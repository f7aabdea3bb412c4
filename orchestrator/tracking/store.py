"""Where an MLflow store is: the database that a URI means, and the artifacts of a run folder that has moved."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from scoring.errors import InputError

log = logging.getLogger(__name__)

ARTIFACTS = "mlartifacts"
SERVER = ("http://", "https://")


class StoreRefuses(InputError):
    """A store that is there cannot be used now: it is locked, may only be read, is damaged or another MLflow's."""


def refuse_password(uri: str | None) -> None:
    """Raise `InputError` for a URI with a password: it would be in logs, lists of processes and Ray's dashboard."""
    if uri is not None and urlsplit(uri).password:
        raise InputError(
            "--tracking-uri has a password in it; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
        )


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


def store_uri(uri: str | None, out: Path) -> str:
    """The URI of the store given by another, by default in `out`; absolute, since the working directory changes."""
    if uri is None:
        return sqlite_uri(out / "mlflow.db")
    refuse_password(uri)
    return sqlite_uri(database_of(uri), urlsplit(uri).query) if uri.startswith("sqlite:///") else uri


def check_database(database: Path, writing: bool) -> None:
    """Raise `sqlite3.Error` if a database cannot be read, or written to; MLflow would try for minutes."""
    if database.exists():
        with closing(sqlite3.connect(database, timeout=2)) as store:
            store.execute("SELECT * FROM sqlite_master")
            if writing:
                store.execute("BEGIN IMMEDIATE")
                store.execute("PRAGMA user_version = 0")  # never committed; a lock alone needs no right to write


def relocate(database: Path, out: Path) -> None:
    """Where a run folder has moved or is a copy, have its own store read the artifacts that are in it.

    MLflow keeps absolute addresses, and its client cannot change them. Only for who writes to the store or shows it.
    """
    location = (out.resolve() / ARTIFACTS).as_uri()
    if not database.exists():
        return
    with closing(sqlite3.connect(database)) as store, store:
        moved = store.execute(
            "SELECT experiment_id, artifact_location FROM experiments WHERE artifact_location LIKE ? AND"
            " artifact_location != ?",
            (f"%/{ARTIFACTS}", location),
        ).fetchall()
        for experiment, old in moved:
            log.info("%s was at %s: its MLflow store now reads the artifacts from here", out, old)
            store.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) WHERE experiment_id = ?",
                (location, len(old) + 1, experiment),
            )
            store.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (location, experiment)
            )
