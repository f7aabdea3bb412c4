"""The storage between nodes that share no file system, in this process; a whole run on such nodes is in tests/cluster.

One driver at a time works on it, and the run goes from one node to the other.
"""

from __future__ import annotations

import json
import os
import resource
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator.ledger.folders import BRANCHES, RECORD, add_systems, read_record
from orchestrator.ledger.storage import DRIVER, Storage, StorageAway, every, stored_run
from scoring.errors import InputError
from tests.cluster.conftest import wait_for
from tests.orchestrator.ledgers import finished_branch

FOLDER = f"{BRANCHES}/a-b-0"
TABLE = f"{FOLDER}/tables/knn.parquet"


class Node:
    """An output folder of its own, and the storage that all have."""

    def __init__(self, out: Path, stored: Path) -> None:
        out.mkdir()
        self.out, self.stored, self.storage = out, stored, Storage(stored.as_uri(), out)

    def write(self, *names, text=None):
        for name in names:
            (self.out / name).parent.mkdir(parents=True, exist_ok=True)
            (self.out / name).write_text(name if text is None else text)

    def read(self, name):
        return (self.out / name).read_text()

    def drive(self, report=None):
        """The report, after work as a driver who may write another one."""
        with stored_run(self.storage, self.out):
            if report is not None:
                self.write("report.html", text=report)
        return self.read("report.html")


@pytest.fixture
def nodes(tmp_path):
    return [Node(tmp_path / name, tmp_path / "storage") for name in ("one", "two")]


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_branch_goes_from_node_to_node_and_damage_is_mended(nodes):
    one, two = nodes

    def sent():
        one.storage.push_branch("a-b-0")
        two.storage.pull_branch("a-b-0")

    sent()
    assert not (two.out / BRANCHES).exists()
    finished_branch(one.out)
    sent()
    add_systems(two.out, "a-b-0", ["s5"])
    two.write(TABLE, text="scorEs")
    two.storage.pull_branch("a-b-0")
    assert two.read(TABLE) == "scores"
    assert read_record(two.out / FOLDER).tags == {"system": "s5"}  # what is noted here stays
    finished_branch(one.out, scores=b"better scores")  # by a newer version
    sent()
    assert two.read(TABLE) == "better scores"
    for half in (lambda record: record.unlink(), lambda record: record.write_bytes(b"\xff{")):
        half(one.stored / FOLDER / RECORD)
        (two.out / FOLDER / RECORD).unlink()
        two.storage.pull_branch("a-b-0")
        assert read_record(two.out / FOLDER) is None
        sent()
        assert read_record(two.out / FOLDER) == read_record(one.out / FOLDER)


def test_of_a_set_of_generated_clips_its_check_comes_last(nodes):
    one, two = nodes
    check, features, rows = names = [f"generated/g1/{name}" for name in ("check.json", "features.npy", "rows.parquet")]
    one.write(*names, "generated/g1/.half.7.tmp")
    for act, target in ((one.storage.push, one.stored), (two.storage.pull, two.out)):
        (target / features).mkdir(parents=True)  # in the way
        with pytest.raises(OSError, match="directory"):
            act("generated/g1")
        assert not (target / check).exists()
        (target / features).rmdir()
        act("generated/g1")
        assert [name for name in files(target) if name.startswith("generated")] == names
        (one.stored / "generated/g1/.half.8.tmp").touch()  # as another node writes it
    one.write(rows, text="of another size")
    one.storage.push("generated/g1")
    two.storage.pull("generated/g1")
    assert two.read(rows) == "of another size"


def test_what_there_is_no_room_for_is_not_stored_by_half_and_ends_no_run(nodes, caplog):
    node, _ = nodes
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with stored_run(node.storage, node.out):
            node.write("report.html", text="x" * 2000)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # bytes of a file
            with pytest.raises(StorageAway, match=r"File too large.*; run again to go on"):
                node.storage.push("report.html")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "not everything could be stored" in caplog.text
    assert "report.html" not in "".join(files(node.stored))
    node.drive()
    assert "report.html" in files(node.stored)


@pytest.mark.parametrize("name", ["store", "my store", "100 %"])
def test_a_uri_means_the_same_everywhere(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    uri = Storage(name, tmp_path).uri
    monkeypatch.chdir("/")
    assert Storage(uri, tmp_path).uri == uri == (tmp_path / name).as_uri()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_cannot_be_written_to_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    for uri, told in (
        ((tmp_path / "file").as_uri(), "cannot be written to"),
        ("nowhere://bucket", "cannot be written to: Protocol not known"),
        ("s3://someone:secret@bucket", "has a password in it"),
    ):
        with pytest.raises(InputError, match=told):
            Storage(uri, tmp_path)


def test_a_checkpoint_follows_its_branch(nodes):
    one, two = nodes
    one.write("checkpoints/b1.pt", text="step 1")
    stored = one.stored / "checkpoints/b1.pt"
    with suppress(KeyboardInterrupt), one.storage.following(one.out / "checkpoints/b1.pt", 0.02):
        one.write("checkpoints/b1.pt", text="step 7")
        wait_for(lambda: stored.exists() and stored.read_text() == "step 7", 5)
        raise KeyboardInterrupt  # as if the node were lost
    with two.storage.following(two.out / "checkpoints/b1.pt", 0.02):
        assert two.read("checkpoints/b1.pt") == "step 7"
    assert not stored.exists()


def test_of_a_file_that_two_nodes_make_the_first_counts(nodes):
    one, two = nodes
    one.write("cache/frozen.npy", text="by a GPU")
    two.write("cache/frozen.npy", text="by a CPU")
    for node in (one, two, one):
        node.storage.share(node.out / "cache/frozen.npy")
    assert one.read("cache/frozen.npy") == two.read("cache/frozen.npy") == "by a GPU"


def test_a_run_moves_to_another_node_without_what_is_each_nodes_own(nodes):
    one, two = nodes
    moved = [".id", "data/clip.wav", "mlflow.db", "report.html", "systems/s/result.json"]
    one.write(*moved, ".node", "cache/x/samples.npy", "checkpoints/b.pt", "a.lock")
    finished_branch(one.out)
    two.write("mlflow.db-journal")  # of a database that is replaced
    one.storage.push_run()
    two.storage.pull_run()
    assert files(two.out) == moved
    (one.out / "report.html").unlink()  # of results that are others now
    one.storage.push_run()
    assert "report.html" not in files(one.stored)


def test_a_driver_has_what_the_last_one_left_and_what_it_left_itself(nodes):
    one, two = nodes
    one.drive("old")
    two.drive("new")
    assert one.drive() == "new"
    one.write("report.html", text="newest, of a driver that was killed before it had stored it")
    assert one.drive().startswith("newest")
    assert two.drive().startswith("newest")
    one.write(".id", text="of another run")
    with pytest.raises(InputError, match="has another run than"):
        one.drive()


def test_a_driver_is_refused_while_another_one_lives(nodes, monkeypatch):
    one, two = nodes
    monkeypatch.setattr("orchestrator.ledger.storage.BEAT_SECONDS", 0.05)
    signature = one.stored / DRIVER
    with stored_run(one.storage, one.out):
        one.write("report.html")
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


@pytest.mark.parametrize("signature", [None, b"", b"\xff", b"[]"])
def test_a_run_that_was_fetched_by_half_is_fetched_again(nodes, signature):
    """Also if the last driver's signature is damaged."""
    one, two = nodes
    one.drive("old")
    if signature is not None:
        (one.stored / DRIVER).write_bytes(signature)
    (two.out / "report.html").mkdir()  # in the way
    with suppress(OSError):
        two.drive()
    (two.out / "report.html").rmdir()
    assert two.drive() == "old"


def test_what_is_done_every_so_often_is_done_again_after_it_failed():
    tries = []

    def away():
        tries.append(0)
        raise StorageAway

    with every(0.01, away):
        wait_for(lambda: len(tries) > 2, 5)
