"""Finished work in a run's folder, made without training, and the MLflow store that it is sent to."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from mlflow import MlflowClient

from orchestrator.ledger.folders import BRANCHES, TABLES, Record, write_record
from orchestrator.tracking.store import sqlite_uri
from scoring.table import file_sha256, write_table


def finished_branch(
    out: Path, name: str = "a/b/0", scores: bytes | pa.Table = b"scores", table: str = "knn", **known: object
) -> Record:
    """A branch in the ledger, with one table: its record."""
    folder = out / BRANCHES / name.replace("/", "-")
    path = folder / TABLES / f"{table}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(scores, bytes):
        path.write_bytes(scores)
    else:
        write_table(scores, path)
    identity = {"role": "branch", "branch_id": folder.name}
    files, tables = {f"{TABLES}/{path.name}": file_sha256(path)}, {table: "its identity"}
    record = Record(name=name, identity=identity, files=files, tables=tables, **known)
    write_record(folder, record)
    return record


def empty_store(shared: Callable[..., Path], database: Path) -> str:
    """The URI of a new store, a copy of one that is made once: that takes MLflow seconds."""

    def make(folder: Path) -> None:
        MlflowClient(sqlite_uri(folder / "mlflow.db")).search_experiments()

    database.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(shared("mlflow", make) / "mlflow.db", database)
    return sqlite_uri(database)
