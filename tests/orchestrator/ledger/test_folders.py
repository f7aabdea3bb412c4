"""The ledger keeps what a record has committed, whatever ends the process that writes."""

import os

import pytest

from orchestrator.ledger.folders import (
    BRANCHES,
    FAILURES,
    Record,
    begin_anew,
    is_finished,
    only_driver,
    read_record,
    record_failure,
    write_record,
)
from scoring.errors import InputError
from tests.commands import checksums

BRANCH = "0123456789abcdef"


def finish(out, scores, identity):
    folder = out / BRANCHES / BRANCH
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    (folder / "tables" / "knn.parquet").write_bytes(scores)
    record = Record(name="a/b/0", identity={"role": "branch"}, files=checksums(folder), tables={"knn": identity})
    write_record(folder, record)
    return folder


def test_only_what_the_record_names_and_is_intact_is_finished(tmp_path):
    assert not is_finished(tmp_path, BRANCH, {"knn": "1"})
    folder = finish(tmp_path, b"scores", "1")
    assert is_finished(tmp_path, BRANCH, {"knn": "1"})
    assert not is_finished(tmp_path, BRANCH, {"knn": "2"})
    assert not is_finished(tmp_path, BRANCH, {"knn": "1", "mahalanobis": "1"})
    (folder / "tables" / "knn.parquet").write_bytes(b"scorEs")  # as by a process that was killed before its record
    assert not is_finished(tmp_path, BRANCH, {"knn": "1"})
    (folder / "record.json").write_text("{")
    assert read_record(folder) is None


def test_a_branch_that_is_tried_again_has_not_failed_and_nothing_half_written_is_left(tmp_path):
    folder = finish(tmp_path, b"scores", "1")
    (folder / ".branch.pt.12345678.tmp").write_bytes(b"half")
    (folder / ".embedding").mkdir()
    (folder / ".embedding" / "embeddings.npy").write_bytes(b"half")
    reason = record_failure(tmp_path, BRANCH, read_record(folder), "Traceback\nValueError: odd")
    assert reason.read_text().endswith("odd")
    assert read_record(reason.parent).tags["failure"] == "ValueError: odd"
    begin_anew(tmp_path, BRANCH)
    assert not (tmp_path / FAILURES / BRANCH).exists()
    assert sorted(path.name for path in folder.iterdir()) == ["record.json", "tables"]
    assert is_finished(tmp_path, BRANCH, {"knn": "1"})


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match=r"file/out: cannot write there .*; give another --out"),
        only_driver(tmp_path / "file" / "out"),
    ):
        pass
    if os.getuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(InputError, match="Permission denied"), only_driver(tmp_path / "closed"):
            pass
