"""The ledger keeps what is finished, also when a folder's replacement is killed at the worst moment."""

import os
import signal
import subprocess
import sys

from orchestrator.ledger.folders import BRANCHES, Record, checksums, is_finished, new_folder, only_driver, write_record

# Replaces the branch, and is killed when the old folder has been moved away and the new one is not there yet.
KILLED = """
import os, signal, sys
from pathlib import Path
from orchestrator.ledger.folders import BRANCHES, new_folder
rename = Path.rename
def once(path, target):
    rename(path, target)
    os.kill(os.getpid(), signal.SIGKILL)
Path.rename = once
with new_folder(Path(sys.argv[1]), BRANCHES, "0123456789abcdef"):
    pass
"""


def test_a_kill_between_the_two_renames_loses_no_finished_branch(tmp_path):
    branch = "0123456789abcdef"
    with new_folder(tmp_path, BRANCHES, branch) as folder:
        (folder / "tables").mkdir()
        (folder / "tables" / "knn.parquet").write_bytes(b"scores")
        record = Record(name="a/b/0", identity={"role": "branch", "branch_id": branch}, files=checksums(folder))
        record = record.model_copy(update={"tables": {"knn": "1"}})
        write_record(folder, record)
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False, env={**os.environ})
    assert ended.returncode == -signal.SIGKILL
    assert not is_finished(tmp_path, branch, {"knn": "1"})
    with only_driver(tmp_path):
        assert is_finished(tmp_path, branch, {"knn": "1"})


def test_a_replacement_that_ended_is_not_undone(tmp_path):
    for content in (b"old", b"new"):
        with new_folder(tmp_path, BRANCHES, "b") as folder:
            (folder / "file").write_bytes(content)
    with only_driver(tmp_path):
        assert (tmp_path / BRANCHES / "b" / "file").read_bytes() == b"new"
