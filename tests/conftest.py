import pytest

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
