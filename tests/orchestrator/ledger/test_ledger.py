"""What a record has committed stays, and goes from node to node; a whole run on such nodes is in tests/cluster."""

import errno
import fcntl
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from contextlib import suppress

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.ledger import folders as ledger
from orchestrator.ledger.folders import RECORD, read_record
from orchestrator.ledger.storage import DRIVER, Storage, StorageAway, every, stored_run
from scoring.errors import InputError
from tests.cluster.conftest import wait_for
from tests.orchestrator.ledgers import finished_branch
from tests.tables import make_table

BRANCH, TABLES = "a-b-0", {"knn": "its identity"}
FOLDER = f"{ledger.BRANCHES}/{BRANCH}"
TABLE = f"{FOLDER}/tables/knn.parquet"


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@settings(max_examples=20, deadline=None)
@given(content=st.binary())
def test_a_branch_is_finished_until_other_bytes_stand_in_its_record_or_table(tmp_path_factory, content):
    out = tmp_path_factory.mktemp("out")
    assert not ledger.is_finished(out, BRANCH, TABLES)
    for file in (f"{FOLDER}/{RECORD}", TABLE):
        finished_branch(out)
        wanted = [TABLES, {"knn": "of other clips"}, {**TABLES, "mahalanobis": "1"}]
        assert [ledger.is_finished(out, BRANCH, tables) for tables in wanted] == [True, False, False]
        (out / file).write_bytes(content)
        assert not ledger.is_finished(out, BRANCH, TABLES)
        assert (read_record(out / FOLDER) is None) == file.endswith(RECORD)
        (out / file).unlink()
        assert not ledger.is_finished(out, BRANCH, TABLES)
    finished_branch(out, scores=make_table())
    assert ledger.read_finished(out, f"{BRANCH}/knn").equals(make_table())


def test_a_branch_notes_its_systems_and_when_it_is_tried_again_nothing_half_written_is_left(tmp_path):
    ledger.add_systems(tmp_path, BRANCH, ["s2"], {})  # it is not finished
    record, text = finished_branch(tmp_path), "ValueError: " + "odd" * 200
    for systems, noted in ((["s2"], "s2"), (["s1", "s2"], "s1,s2"), ([], "s1,s2")):
        ledger.add_systems(tmp_path, BRANCH, systems, {"knn": [f"a/{name}/0" for name in systems]})
        assert read_record(tmp_path / FOLDER).tags == {"system": noted}
    assert read_record(tmp_path / FOLDER).names == {"knn": ["a/s1/0", "a/s2/0"]}
    (tmp_path / FOLDER / "tables" / ".half.tmp").write_bytes(b"half")
    (tmp_path / FOLDER / ".embedding").mkdir()
    (tmp_path / FOLDER / ".embedding" / "embeddings.npy").write_bytes(b"half")
    reason = ledger.record_failure(tmp_path, BRANCH, record, f"Traceback\n{text}\n")
    assert reason.read_text() == f"Traceback\n{text}\n"
    failed = read_record(reason.parent)
    assert (failed.status, failed.tags["failure"], [*failed.files]) == ("FAILED", text[:500], [reason.name])
    ledger.begin_anew(tmp_path, BRANCH)
    assert not reason.parent.exists()
    assert {path.name for path in (tmp_path / FOLDER).rglob("*")} == {RECORD, "tables", "knn.parquet"}


def test_a_folder_has_one_driver_who_can_write_there(tmp_path):
    for _ in range(2):
        with ledger.only_driver(tmp_path / "out"), pytest.raises(TimeoutError):
            FileLock(tmp_path / "out" / ".lock").acquire(timeout=0)
    told = {tmp_path: "another run is writing to this folder"}
    told[tmp_path / ".lock" / "out"] = r"lock/out: cannot write there .*; give another --out"
    for out, message in told.items():
        with FileLock(tmp_path / ".lock"), pytest.raises(InputError, match=message), ledger.only_driver(out):
            pass


DIES = """
import fcntl, os, signal, sys
from pathlib import Path
from scoring import locks
def flock(*_):
    raise OSError(int(sys.argv[2]), "no flock")
fcntl.flock, locks.LEASE_SECONDS = flock, 0.3
with locks.locked(Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EIO])
def test_without_flock_a_lease_keeps_a_second_driver_out_until_the_first_has_ended_or_died(tmp_path, monkeypatch, code):
    def flock(*_):
        raise OSError(code, "no flock")

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr("scoring.locks.LEASE_SECONDS", 0.3)
    lease = tmp_path / ".lock.lease.lock"
    for host in ("", "elsewhere"):
        with ledger.only_driver(tmp_path), pytest.raises(InputError, match="another run is writing to this folder"):
            ledger.only_driver(tmp_path).__enter__()
        assert (tmp_path / ".lock").exists()  # of the lock that there is not: it is nobody's
        subprocess.run([sys.executable, "-c", DIES, tmp_path / ".lock", str(code)], check=False)
        lease.write_text(re.sub("(?<=host=).*", lambda name, host=host: host or name[0], lease.read_text()))


def test_a_folder_keeps_its_id_where_it_moves_and_its_copy_is_another_run_in_a_store_of_many(tmp_path):
    first = tmp_path / "first"
    first.mkdir()
    own = ledger.new_folder_id(first, shared=True)
    assert own == ledger.new_folder_id(first) == ledger.folder_id(first) != ledger.folder_id(tmp_path / "x") == ""
    copy, link = shutil.copytree(first, tmp_path / "copy"), tmp_path / "link"
    link.symlink_to(first)
    assert [ledger.new_folder_id(out, shared=True) == own for out in (link, first)] == [True, True]
    assert ledger.new_folder_id(copy) == own  # in the store that was copied with it
    other = ledger.new_folder_id(copy, shared=True)
    assert own != other == ledger.new_folder_id(copy, shared=True)
    moved = first.rename(tmp_path / "moved")
    assert [ledger.new_folder_id(moved, shared=True) for _ in "ab"] == [own, own]


class Node(Storage):
    def __init__(self, out, stored):
        out.mkdir()
        super().__init__(stored.as_uri(), out)
        self.out, self.stored = out, stored

    def put(self, *names, text=None):
        for name in names:
            (self.out / name).parent.mkdir(parents=True, exist_ok=True)
            (self.out / name).write_text(text or name)

    def get(self, name):
        return (self.out / name).read_text()

    def drive(self, report=None):
        with stored_run(self, self.out):
            if report:
                self.put("report.html", text=report)
        return self.get("report.html")


@pytest.fixture
def nodes(tmp_path):
    return [Node(tmp_path / name, tmp_path / "storage") for name in ("one", "two")]


def test_a_branch_goes_from_node_to_node_and_damage_is_mended(nodes):
    one, two = nodes

    def sent():
        one.push_branch(BRANCH)
        two.pull_branch(BRANCH)
        return read_record(two.out / FOLDER)

    assert (sent(), files(two.out)) == (None, [])
    finished_branch(one.out)
    sent()
    ledger.add_systems(two.out, BRANCH, ["s5"], {})
    two.put(TABLE, text="scorEs")
    assert sent().tags == {"system": "s5"}  # what is noted here stays
    assert two.get(TABLE) == "scores"
    finished_branch(one.out, scores=b"better scores")  # by a newer version
    for damage in (lambda record: None, lambda record: record.unlink(), lambda record: record.write_bytes(b"\xff{")):
        damage(one.stored / FOLDER / RECORD)
        assert sent() == read_record(one.out / FOLDER)
        assert two.get(TABLE) == "better scores"
    for node in (one.stored, two.out):
        (node / FOLDER / RECORD).unlink()
    two.pull_branch(BRANCH)  # half of one is none
    assert read_record(two.out / FOLDER) is None


def test_of_a_set_of_generated_clips_its_check_comes_last(nodes):
    one, two = nodes
    check, features, rows = names = [f"generated/g1/{name}" for name in ("check.json", "features.npy", "rows.parquet")]
    one.put(*names, "generated/g1/.half.7.tmp")
    for act, target in ((one.push, one.stored), (two.pull, two.out)):
        (target / features).mkdir(parents=True)  # in the way
        with pytest.raises(OSError, match="directory"):
            act("generated/g1")
        assert not (target / check).exists()
        (target / features).rmdir()
        act("generated/g1")
        assert [name for name in files(target) if name.startswith("generated")] == names
        (one.stored / "generated/g1/.half.8.tmp").touch()  # as another node writes it
    one.put(rows, text="of another size")
    one.push("generated/g1")
    two.pull("generated/g1")
    assert two.get(rows) == "of another size"


def test_what_there_is_no_room_for_is_not_stored_by_half_and_ends_no_run(nodes, caplog):
    node, _ = nodes
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with stored_run(node, node.out):
            node.put("report.html", text="x" * 2000)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # bytes of a file
            with pytest.raises(StorageAway, match=r"File too large.*; run again to go on"):
                node.push("report.html")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "not everything could be stored" in caplog.text
    assert "report.html" not in "".join(files(node.stored))
    node.drive()
    assert "report.html" in files(node.stored)


@pytest.mark.parametrize("name", ["store", "my store", "100 %"])
def test_a_uri_means_the_same_everywhere_and_must_be_writable(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    uri = Storage(name, tmp_path).uri
    monkeypatch.chdir("/")
    assert Storage(uri, tmp_path).uri == uri == (tmp_path / name).as_uri()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    told = {f"{uri}/.writable": "cannot be written to", "nowhere://bucket": "cannot be written to: Protocol not known"}
    for wrong, message in {**told, "s3://someone:secret@bucket": "has a password in it"}.items():
        with pytest.raises(InputError, match=message):
            Storage(wrong, tmp_path)


def test_a_checkpoint_follows_its_branch_and_what_two_nodes_make_is_the_firsts(nodes):
    one, two = nodes
    name = "checkpoints/b1.pt"
    one.put(name, text="step 1")
    with suppress(KeyboardInterrupt), one.following(one.out / name, 0.02):
        one.put(name, text="step 7")
        wait_for(lambda: name in files(one.stored) and (one.stored / name).read_text() == "step 7", 5)
        raise KeyboardInterrupt  # as if the node were lost
    with two.following(two.out / name, 0.02):
        assert two.get(name) == "step 7"
    assert name not in files(one.stored)
    for node, device in ((one, "a GPU"), (two, "a CPU"), (one, "a GPU")):
        node.put("cache/frozen.npy", text=device)
        node.share(node.out / "cache/frozen.npy")
        assert node.get("cache/frozen.npy") == "a GPU"


@pytest.mark.parametrize("signature", [None, b"", b"\xff", b"[]"])
def test_a_driver_has_what_the_last_one_left_and_what_it_left_itself(nodes, signature):
    one, two = nodes
    moved = [".id", "data/clip.wav", "mlflow.db", "report.html", "systems/s/result.json"]
    one.put(*moved[1:], "cache/x/samples.npy", "checkpoints/b.pt", "a.lock")
    finished_branch(one.out)
    one.drive("old")
    if signature is not None:
        (one.stored / DRIVER).write_bytes(signature)
    two.put("mlflow.db-journal")  # of a database that is replaced
    (two.out / "report.html").mkdir()  # in the way
    with suppress(OSError):
        two.drive()
    (two.out / "report.html").rmdir()
    assert two.drive() == "old"
    assert files(two.out) == [".id", ".location", ".node", *moved[1:]]  # nothing that is each node's own
    two.drive("new")
    assert one.drive() == "new"
    one.put("report.html", text="newest, of a driver that was killed before it had stored it")
    for node in nodes:
        assert node.drive().startswith("newest")
    (two.out / "report.html").unlink()  # of results that are others now
    two.push_run()
    assert "report.html" not in files(two.stored)
    one.put(".id", text="of another run")
    with pytest.raises(InputError, match="has another run than"):
        one.drive()


def test_a_driver_is_refused_while_another_one_lives(nodes, monkeypatch):
    one, two = nodes
    monkeypatch.setattr("orchestrator.ledger.storage.BEAT_SECONDS", 0.05)
    signature = one.stored / DRIVER
    with stored_run(one, one.out):
        one.put("report.html")
        os.utime(signature, (0, 0))
        wait_for(lambda: signature.stat().st_mtime > 0, 5)
        with pytest.raises(InputError, match=r"another run is writing there, on .*, \d+ s ago"):
            two.drive()
        one.drive()  # started again here, which the folder's lock lets through
    two.drive()
    signature.write_text(json.dumps({**json.loads(signature.read_text()), "at_work": True}))  # and was killed
    with pytest.raises(InputError, match="another run is writing there"):
        one.drive()
    os.utime(signature, (0, 0))
    one.drive()


def test_what_is_done_every_so_often_is_done_again_after_it_failed():
    tries = []
    with every(0.01, lambda: os.stat(f"/no/{tries.append(0)}")):
        wait_for(lambda: len(tries) > 2, 5)
