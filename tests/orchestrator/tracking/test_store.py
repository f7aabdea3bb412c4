import pytest
from mlflow import MlflowClient

from orchestrator.tracking.store import database_of, sqlite_uri


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
