"""The ledger keeps what a record has committed, whatever ends the process that writes."""

import os

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.ledger.folders import (
    BRANCHES,
    FAILURES,
    RECORD,
    add_systems,
    begin_anew,
    folder_id,
    is_finished,
    new_folder_id,
    only_driver,
    read_finished,
    read_record,
    record_failure,
)
from scoring.errors import InputError
from tests.orchestrator.ledgers import finished_branch
from tests.tables import make_table

BRANCH, TABLES = "a-b-0", {"knn": "its identity"}


def test_only_what_the_record_names_and_is_intact_is_finished(tmp_path):
    assert not is_finished(tmp_path, BRANCH, TABLES)
    finished_branch(tmp_path)
    assert is_finished(tmp_path, BRANCH, TABLES)
    assert not is_finished(tmp_path, BRANCH, {"knn": "of other clips"})
    assert not is_finished(tmp_path, BRANCH, {**TABLES, "mahalanobis": "1"})
    (tmp_path / BRANCHES / BRANCH / "tables" / "knn.parquet").unlink()
    assert not is_finished(tmp_path, BRANCH, TABLES)
    finished_branch(tmp_path, scores=make_table())
    assert read_finished(tmp_path, f"{BRANCH}/knn").equals(make_table())


@settings(max_examples=30)
@given(content=st.binary())
def test_with_any_other_bytes_in_its_record_or_table_a_branch_is_unfinished(tmp_path_factory, content):
    out = tmp_path_factory.mktemp("damaged")
    for file in (RECORD, "tables/knn.parquet"):
        finished_branch(out)
        (out / BRANCHES / BRANCH / file).write_bytes(content)
        assert not is_finished(out, BRANCH, TABLES)
        assert (read_record(out / BRANCHES / BRANCH) is None) == (file == RECORD)


def test_a_branch_notes_which_systems_use_it(tmp_path):
    add_systems(tmp_path, BRANCH, ["s2"])  # it is not finished
    assert not (tmp_path / BRANCHES).exists()
    finished_branch(tmp_path)
    for systems, noted in ((["s2"], "s2"), (["s1", "s2"], "s1,s2"), ([], "s1,s2")):
        add_systems(tmp_path, BRANCH, systems)
        assert read_record(tmp_path / BRANCHES / BRANCH).tags == {"system": noted}


def test_a_branch_that_is_tried_again_has_not_failed_and_nothing_half_written_is_left(tmp_path):
    record, folder = finished_branch(tmp_path), tmp_path / BRANCHES / BRANCH
    (folder / ".branch.pt.12345678.tmp").write_bytes(b"half")
    (folder / "tables" / ".half.tmp").write_bytes(b"half")
    (folder / ".embedding").mkdir()
    (folder / ".embedding" / "embeddings.npy").write_bytes(b"half")
    reason = record_failure(tmp_path, BRANCH, record, "Traceback\nValueError: " + "odd" * 200 + "\n")
    assert reason.read_text().endswith("odd\n")
    failed = read_record(reason.parent)
    assert (failed.status, failed.tags["failure"]) == ("FAILED", ("ValueError: " + "odd" * 200)[:500])
    begin_anew(tmp_path, BRANCH)
    assert not (tmp_path / FAILURES / BRANCH).exists()
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*")} == {
        *(RECORD, "tables", "tables/knn.parquet")
    }
    assert is_finished(tmp_path, BRANCH, TABLES)


def test_a_folder_keeps_its_id(tmp_path):
    assert folder_id(tmp_path) == ""
    assert new_folder_id(tmp_path) == new_folder_id(tmp_path) == folder_id(tmp_path) != ""


def test_a_folder_has_one_driver_and_one_that_cannot_be_written_to_none(tmp_path):
    def driven(out, told):
        with pytest.raises(InputError, match=told), only_driver(out):
            pass

    with FileLock(tmp_path / ".lock"):
        driven(tmp_path, "another run is writing to this folder")
    with only_driver(tmp_path / "new"), pytest.raises(TimeoutError):
        FileLock(tmp_path / "new" / ".lock").acquire(timeout=0)
    with only_driver(tmp_path / "new"):
        pass
    (tmp_path / "file").write_text("")
    driven(tmp_path / "file" / "out", r"file/out: cannot write there .*; give another --out")
    if os.getuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        driven(tmp_path / "closed", "Permission denied")
