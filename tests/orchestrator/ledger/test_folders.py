"""The ledger keeps what a record has committed, whatever ends the process that writes."""

from contextlib import ExitStack

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.ledger import folders as ledger
from scoring.errors import InputError
from tests.orchestrator.ledgers import finished_branch
from tests.tables import make_table

BRANCH, TABLES = "a-b-0", {"knn": "its identity"}


@settings(max_examples=20)
@given(content=st.binary())
def test_a_branch_is_finished_until_other_bytes_stand_in_its_record_or_table(tmp_path_factory, content):
    out = tmp_path_factory.mktemp("out")
    folder = out / ledger.BRANCHES / BRANCH
    assert not ledger.is_finished(out, BRANCH, TABLES)
    for file in (ledger.RECORD, "tables/knn.parquet"):
        finished_branch(out)
        assert ledger.is_finished(out, BRANCH, TABLES)
        assert not ledger.is_finished(out, BRANCH, {"knn": "of other clips"})
        assert not ledger.is_finished(out, BRANCH, {**TABLES, "mahalanobis": "1"})
        (folder / file).write_bytes(content)
        assert not ledger.is_finished(out, BRANCH, TABLES)
        assert (ledger.read_record(folder) is None) == (file == ledger.RECORD)
        (folder / file).unlink()
        assert not ledger.is_finished(out, BRANCH, TABLES)
    finished_branch(out, scores=make_table())
    assert ledger.read_finished(out, f"{BRANCH}/knn").equals(make_table())


def test_a_branch_notes_which_systems_use_it(tmp_path):
    ledger.add_systems(tmp_path, BRANCH, ["s2"])  # it is not finished
    finished_branch(tmp_path)
    for systems, noted in ((["s2"], "s2"), (["s1", "s2"], "s1,s2"), ([], "s1,s2")):
        ledger.add_systems(tmp_path, BRANCH, systems)
        assert ledger.read_record(tmp_path / ledger.BRANCHES / BRANCH).tags == {"system": noted}


def test_a_branch_that_is_tried_again_has_not_failed_and_nothing_half_written_is_left(tmp_path):
    record, folder = finished_branch(tmp_path), tmp_path / ledger.BRANCHES / BRANCH
    (folder / "tables" / ".half.tmp").write_bytes(b"half")
    (folder / ".embedding").mkdir()
    (folder / ".embedding" / "embeddings.npy").write_bytes(b"half")
    text = "ValueError: " + "odd" * 200
    reason = ledger.record_failure(tmp_path, BRANCH, record, f"Traceback\n{text}\n")
    assert reason.read_text() == f"Traceback\n{text}\n"
    failed = ledger.read_record(reason.parent)
    assert (failed.status, failed.tags["failure"], [*failed.files]) == ("FAILED", text[:500], [reason.name])
    ledger.begin_anew(tmp_path, BRANCH)
    assert not reason.parent.exists()
    assert {path.name for path in folder.rglob("*")} == {ledger.RECORD, "tables", "knn.parquet"}


def test_a_folder_has_one_id_and_one_driver_who_can_write_there(tmp_path):
    first = ledger.new_folder_id(tmp_path)
    assert (
        ledger.new_folder_id(tmp_path) == ledger.folder_id(tmp_path) == first != ledger.folder_id(tmp_path / "x") == ""
    )
    for _ in range(2):
        with ledger.only_driver(tmp_path / "out"), pytest.raises(TimeoutError):
            FileLock(tmp_path / "out" / ".lock").acquire(timeout=0)
    with FileLock(tmp_path / ".lock"), pytest.raises(InputError, match="another run is writing to this folder"):
        ExitStack().enter_context(ledger.only_driver(tmp_path))
    with pytest.raises(InputError, match=r"id/out: cannot write there .*; give another --out"):
        ExitStack().enter_context(ledger.only_driver(tmp_path / ledger.ID / "out"))
