import pytest
from mlflow import MlflowClient

from orchestrator.tracking.store import database_of, refuse_password, sqlite_uri
from scoring.errors import InputError
from tests.orchestrator.ledgers import empty_store

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["run?1", "run%201", "a b#c&d=e", "Läufe's+100%"])
def test_a_store_lies_where_its_folder_is_whatever_its_name(tmp_path, shared, name):
    uri = empty_store(shared, tmp_path / name / "mlflow.db")
    assert database_of(uri) == tmp_path / name / "mlflow.db"
    before = database_of(uri).read_bytes()
    MlflowClient(uri).create_experiment("made here")
    assert database_of(uri).read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_settings_of_a_given_uri_stay(tmp_path):
    assert sqlite_uri(tmp_path / "x.db", "timeout=30") == f"sqlite:///{tmp_path / 'x.db'}?timeout=30"


def test_a_password_is_refused():
    for uri in (None, "http://host:5000", "http://user@host:5000", "sqlite:////a/b.db"):
        refuse_password(uri)
    with pytest.raises(InputError, match="MLFLOW_TRACKING_PASSWORD"):
        refuse_password("https://user:secret@host")
