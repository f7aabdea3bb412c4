"""The exported model of the run that tests share, and how its answers are read."""

from pathlib import Path

import pytest

from orchestrator.model.ensemble import Ensemble


@pytest.fixture(scope="session")
def model(run) -> Path:
    """The exported model; not to be changed."""
    return run.model


@pytest.fixture(scope="session")
def ensemble(model) -> Ensemble:
    """The exported model at work."""
    return Ensemble(model)
