"""One run of a small system, and its export, for all tests of packaged ensembles."""

import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from branches.data.synthetic import SyntheticSize, write_dataset
from orchestrator.model.ensemble import Ensemble
from orchestrator.model.export import export_system
from tests.commands import tutti
from tests.orchestrator.model.cases import BACKBONE, SYSTEM, Run


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Run:
    """A finished run and the model of its system; test processes that work side by side share it."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    made = Run(base / "ensemble")
    with FileLock(base / "ensemble.lock"):
        if not (made.folder / "done").exists():
            _make(made)
            (made.folder / "done").touch()
    return made


def _make(run: Run) -> None:
    """`rotor` has two domains and labels, `pump` neither; with one labelled machine no branch loses its weight."""
    write_dataset(run.data, SyntheticSize(10, 3, 2, 1.0), machines=["rotor", "pump"])
    for path in (run.data / "pump").rglob("*_target_train_*.wav"):
        path.unlink()
    for i, path in enumerate(sorted((run.data / "pump" / "test").iterdir())):
        path.rename(path.with_name(f"section_00_{i:04d}.wav"))
    system = run.folder / "mixed.yaml"
    shutil.copy(BACKBONE, run.backbone)
    system.write_text(SYSTEM.replace("pretrained.pt", str(run.backbone)))
    finished = tutti("run", system, "--data", run.data, "--out", run.out, timeout=600)
    assert finished.returncode == 0, finished.stderr
    export_system(run.out, "mixed", run.model)


@pytest.fixture(scope="session")
def model(run) -> Path:
    """The exported model; not to be changed."""
    return run.model


@pytest.fixture(scope="session")
def ensemble(model) -> Ensemble:
    """The exported model at work."""
    return Ensemble(model)
