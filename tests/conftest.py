from cluster.session import prepare_environment

prepare_environment("local")  # before any test imports ray


def pytest_collection_modifyitems(items):
    """Files with the longest tests first, so that no worker is left alone with one at the end."""
    seconds = {}
    for item in items:
        marker = item.get_closest_marker("slow")
        seconds[item.path] = max(seconds.get(item.path, 0), marker.kwargs.get("seconds", 20) if marker else 0)
    items.sort(key=lambda item: -seconds[item.path])
