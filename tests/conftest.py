import os
from pathlib import Path

import pytest
from filelock import FileLock

from branches.data.synthetic import SyntheticSize, write_dataset
from cluster.session import prepare_environment

prepare_environment("local")  # before any test imports ray


def pytest_addoption(parser):
    parser.addoption("--part", default="1/1", help="K/N: of the selected tests every N-th, from the K-th on")


@pytest.hookimpl(trylast=True)  # after -m has selected
def pytest_collection_modifyitems(config, items):
    """Files with the longest tests first, so that no worker is left alone with one at the end."""
    first, step = map(int, config.getoption("part").split("/"))
    items[:] = items[first - 1 :: step]
    seconds = {}
    for item in items:
        marker = item.get_closest_marker("slow")
        seconds[item.path] = max(seconds.get(item.path, 0), marker.kwargs.get("seconds", 20) if marker else 0)
    items.sort(key=lambda item: -seconds[item.path])


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """Makes a folder once for all tests, in whatever process they run: `shared(name, make)` calls `make(folder)`."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def folder(name: str, make) -> Path:
        path, done = base / name, base / f"{name}.done"
        with FileLock(base / f"{name}.lock"):
            if not done.exists():
                path.mkdir()
                make(path)
                done.touch()
        return path

    return folder


@pytest.fixture(scope="session")
def dataset(shared) -> Path:
    """A labelled data set of two machines, 25 clips of one second for each; not to be changed."""
    machines, size = ["rotor", "pump"], SyntheticSize(10, 3, 3, 1.0)
    return shared("dataset", lambda folder: write_dataset(folder / "data", size, machines=machines)) / "data"


@pytest.fixture(scope="session")
def run(shared, dataset):
    """The finished run of the golden system and its exported model; not to be changed."""
    from tests.finished import FinishedRun, finish_run  # which load torch and MLflow

    return FinishedRun(shared("run", lambda folder: finish_run(folder, dataset)))
