"""`cluster/processes.py` is the one file that rests on what Ray does not publish: this says for which release."""

from importlib.metadata import version
from pathlib import Path

import cluster

RELEASE = "2.60"  # whose `Node` has `all_processes` and `kill_all_processes(check_alive, allow_graceful)`


def test_it_is_for_this_release_of_ray():
    assert version("ray").startswith(f"{RELEASE}."), (
        "another Ray: see whether its Node still has all_processes and kill_all_processes, then raise RELEASE"
    )


def test_no_other_file_rests_on_rays_internals():
    root = Path(cluster.__file__).parents[1]
    folders = [root / name for name in ("cluster", "orchestrator", "branches", "fusion", "scoring")]
    files = [path for folder in folders for path in folder.rglob("*.py")]
    assert [path.name for path in files if "import ray._private" in path.read_text()] == []
    assert [path.name for path in files if "from ray._private" in path.read_text()] == ["processes.py"]
