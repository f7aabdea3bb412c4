import pytest

from orchestrator.model.ensemble import Ensemble


@pytest.fixture(scope="session")
def model(run):
    return run.model


@pytest.fixture(scope="session")
def ensemble(model):
    return Ensemble(model)
