import sqlite3
from contextlib import closing

import pytest
from mlflow import MlflowClient

from orchestrator.tracking.store import database_of, refuse_password, sqlite_uri
from scoring.errors import InputError


def test_mlflow_has_the_tables_that_are_changed(tmp_path):
    """`relocate` writes to two tables of MLflow's own, whose columns it names."""
    database = tmp_path / "mlflow.db"
    MlflowClient(sqlite_uri(database)).create_experiment("any")
    with closing(sqlite3.connect(database)) as store:
        columns = {t: {row[1] for row in store.execute(f"PRAGMA table_info({t})")} for t in ("experiments", "runs")}
    assert columns["experiments"] >= {"experiment_id", "artifact_location"}
    assert columns["runs"] >= {"experiment_id", "artifact_uri"}


@pytest.mark.parametrize("name", ["run?1", "run%201", "a b#c&d=e", "Läufe's+100%"])
def test_a_store_lies_where_its_folder_is_whatever_its_name(tmp_path, name):
    database = tmp_path / name / "mlflow.db"
    database.parent.mkdir()
    uri = sqlite_uri(database)
    assert database_of(uri) == database
    MlflowClient(uri).create_experiment("made here")
    assert database.stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert MlflowClient(sqlite_uri(database)).get_experiment_by_name("made here") is not None


def test_settings_of_a_given_uri_stay(tmp_path):
    assert sqlite_uri(tmp_path / "x.db", "timeout=30") == f"sqlite:///{tmp_path / 'x.db'}?timeout=30"


def test_a_password_is_refused():
    for uri in (None, "http://host:5000", "http://user@host:5000", "sqlite:////a/b.db"):
        refuse_password(uri)
    with pytest.raises(InputError, match="MLFLOW_TRACKING_PASSWORD"):
        refuse_password("https://user:secret@host")
