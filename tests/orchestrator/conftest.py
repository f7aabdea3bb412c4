from pathlib import Path

import pytest

from orchestrator.tracking.tracker import open_tracker
from tests.orchestrator.package_case import Case


@pytest.fixture(scope="session")
def store(shared) -> Path:
    """An MLflow store of a run that has just begun, as making one takes seconds; for copies and further runs."""
    return shared("store", lambda folder: open_tracker(None, folder, "experiment")) / "mlflow.db"


@pytest.fixture(scope="session")
def case(tmp_path_factory) -> Case:
    """A run and its submission package; not to be changed."""
    return Case(tmp_path_factory.mktemp("case"))
