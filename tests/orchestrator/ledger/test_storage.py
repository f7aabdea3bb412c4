"""The storage between nodes that share no file system; a whole run on such nodes is in tests/cluster."""

from contextlib import suppress

import pytest

from orchestrator.ledger.folders import (
    BRANCHES,
    RECORD,
    Record,
    add_systems,
    read_record,
    write_record,
)
from orchestrator.ledger.storage import Storage
from scoring.errors import InputError
from tests.cluster.conftest import wait_for
from tests.commands import checksums


@pytest.fixture
def nodes(tmp_path):
    """Two nodes' output folders and the storage of each."""
    uri = (tmp_path / "storage").as_uri()
    outs = [tmp_path / name for name in ("first", "second")]
    for out in outs:
        out.mkdir()
    return [(out, Storage(uri, out)) for out in outs]


def finish(out, branch_id, text):
    folder = out / BRANCHES / branch_id
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    (folder / "tables" / "knn.parquet").write_text(text)
    write_record(folder, Record(name="b", identity={}, files=checksums(folder)))


def test_a_branch_goes_from_node_to_node_and_damage_is_mended(nodes):
    (first, one), (second, two) = nodes
    two.pull_branch("b1")
    assert not (second / BRANCHES).exists()
    finish(first, "b1", "scores")
    one.push_branch("b1")
    two.pull_branch("b1")
    table = second / BRANCHES / "b1" / "tables" / "knn.parquet"
    assert table.read_text() == "scores"
    table.write_text("scorEs")
    two.pull_branch("b1")
    assert table.read_text() == "scores"
    finish(first, "b1", "better scores")  # made again, with another detector
    one.push_branch("b1")
    two.pull_branch("b1")
    assert read_record(second / BRANCHES / "b1") == read_record(first / BRANCHES / "b1")


def test_half_a_branch_is_none(nodes, tmp_path):
    (first, one), (second, two) = nodes
    finish(first, "b1", "scores")
    one.push_branch("b1")
    (tmp_path / "storage" / BRANCHES / "b1" / RECORD).unlink()
    two.pull_branch("b1")
    assert not (second / BRANCHES).exists()


def test_of_a_set_of_generated_clips_its_check_comes_last(nodes, monkeypatch):
    (first, one), (second, two) = nodes
    for name in ("check.json", "features.npy", "rows.parquet"):
        (first / "generated" / "g1").mkdir(parents=True, exist_ok=True)
        (first / "generated" / "g1" / name).write_text(name)
    (first / "generated" / "g1" / ".half.7.tmp").write_text("half")
    order = []
    for storage in (one, two):
        monkeypatch.setattr(storage, "_put", lambda name, put=storage._put: (order.append(name), put(name)))
        monkeypatch.setattr(storage, "_get", lambda name, get=storage._get: (order.append(name), get(name)))
    one.push("generated/g1")
    two.pull("generated/g1")
    assert [name.rpartition("/")[2] for name in order] == 2 * ["features.npy", "rows.parquet", "check.json"]
    assert (second / "generated" / "g1" / "features.npy").read_text() == "features.npy"


def test_a_branch_that_is_here_keeps_what_is_noted_on_it(nodes):
    (first, one), (second, two) = nodes
    finish(first, "b1", "scores")
    one.push_branch("b1")
    two.pull_branch("b1")
    add_systems(second, "b1", ["s2", "s5"])
    two.pull_branch("b1")
    assert read_record(second / BRANCHES / "b1").tags["system"] == "s2,s5"


@pytest.mark.parametrize("name", ["store", "my store", "100 %"])
def test_a_uri_means_the_same_everywhere(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    uri = Storage(name, tmp_path).uri
    monkeypatch.chdir("/")
    assert Storage(uri, tmp_path).uri == uri == (tmp_path / name).as_uri()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_interrupted_start_is_taken_up(nodes):
    (first, one), (second, two) = nodes
    for name in (".id", "mlflow.db", "report.html"):
        (first / name).write_text(name)
    one.push_run()
    (second / "report.html").mkdir()  # stands in the way of the last but one
    with suppress(OSError):
        two.pull_run()
    assert not (second / ".id").exists()
    (second / "report.html").rmdir()
    two.pull_run()
    assert (second / ".id").exists()


class NodeLost(Exception):
    pass


def test_a_checkpoint_follows_its_branch(nodes):
    (first, one), (second, two) = nodes
    name = "checkpoints/code/b1.pt"
    (first / name).parent.mkdir(parents=True)
    with suppress(NodeLost), one.following(first / name, 0.05):
        (first / name).write_text("step 7")
        wait_for(lambda: name in two._stored(name), 5)
        raise NodeLost
    with two.following(second / name, 0.05):
        assert (second / name).read_text() == "step 7"
    assert not two._stored(name)


def test_a_run_moves_to_another_node_without_what_is_each_nodes_own(nodes):
    (first, one), (second, two) = nodes
    for name in (".id", ".node", "report.html", "systems/s/result.json", "cache/x/samples.npy", "a.lock"):
        (first / name).parent.mkdir(parents=True, exist_ok=True)
        (first / name).write_text(name)
    one.push_run()
    two.pull_run()
    found = sorted(str(p.relative_to(second)) for p in second.rglob("*") if p.is_file())
    assert found == [".id", "report.html", "systems/s/result.json"]


def test_a_database_that_is_replaced_leaves_no_journal(nodes):
    (first, one), (second, two) = nodes
    (second / "mlflow.db").write_text("store")
    two.push_run()
    (first / "mlflow.db-journal").write_text("of a killed driver")
    one.pull_run()
    assert sorted(path.name for path in first.glob("mlflow*")) == ["mlflow.db"]


def test_what_cannot_be_written_to_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    for uri, told in (
        ((tmp_path / "file").as_uri(), "cannot be written to"),
        ("nowhere://bucket", "cannot be written to: Protocol not known"),
        ("s3://someone:secret@bucket", "has a password in it"),
    ):
        with pytest.raises(InputError, match=told):
            Storage(uri, tmp_path)


def test_of_a_file_that_two_nodes_make_the_first_counts(nodes):
    (first, one), (second, two) = nodes
    for out, content in ((first, b"by a GPU"), (second, b"by a CPU")):
        (out / "cache").mkdir()
        (out / "cache" / "frozen.npy").write_bytes(content)
    one.share(first / "cache" / "frozen.npy")
    two.share(second / "cache" / "frozen.npy")
    one.share(first / "cache" / "frozen.npy")
    assert {(out / "cache" / "frozen.npy").read_bytes() for out in (first, second)} == {b"by a GPU"}
