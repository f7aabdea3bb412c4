"""Drivers on nodes that share a storage and no file system: one at a time, and the run goes from one to the other."""

import json
import os
from contextlib import suppress

import pytest

from orchestrator.ledger.storage import Storage, stored_run
from scoring.errors import InputError
from tests.cluster.conftest import wait_for


@pytest.fixture
def nodes(tmp_path):
    """Two nodes' output folders, each with the storage."""
    outs = [tmp_path / name for name in ("first", "second")]
    for out in outs:
        out.mkdir()
    return [(Storage((tmp_path / "storage").as_uri(), out), out) for out in outs]


def drive(node, report, run="run"):
    with stored_run(*node):
        (node[1] / ".id").write_text(run)
        (node[1] / "report.html").write_text(report)


def report(node):
    with stored_run(*node):
        return (node[1] / "report.html").read_text()


def test_a_driver_has_what_the_last_one_left_and_what_it_left_itself(nodes):
    one, two = nodes
    drive(one, "old")
    drive(two, "new")
    assert report(one) == "new"
    (one[1] / "report.html").write_text("newest, of a driver that was killed before it had stored it")
    assert report(one).startswith("newest")
    assert report(two).startswith("newest")


def test_a_second_driver_is_refused_while_the_first_one_lives(nodes, tmp_path, monkeypatch):
    one, two = nodes
    monkeypatch.setattr("orchestrator.ledger.storage.BEAT_SECONDS", 0.05)
    signature = tmp_path / "storage" / ".driver"
    with stored_run(*one):
        os.utime(signature, (0, 0))
        wait_for(lambda: signature.stat().st_mtime > 0, 5)
        with pytest.raises(InputError, match=r"another run is writing there, on .*, \d+ s ago"), stored_run(*two):
            pass
        with stored_run(*one):  # one that was started again here, which the folder's lock lets through
            pass
    with stored_run(*two):
        pass


def test_a_driver_that_was_killed_is_followed_after_a_while(nodes, tmp_path):
    one, two = nodes
    drive(one, "old")
    signature = tmp_path / "storage" / ".driver"
    signature.write_text(json.dumps({**json.loads(signature.read_text()), "at_work": True}))
    with pytest.raises(InputError, match="another run is writing there"):
        drive(two, "new")
    os.utime(signature, (0, 0))
    drive(two, "new")
    signature.write_text("")  # half-written
    assert report(two) == "new"


def test_a_folder_with_another_run_is_refused(nodes):
    one, two = nodes
    drive(one, "of the stored run", "run a")
    (two[1] / ".id").write_text("run b")
    with pytest.raises(InputError, match="has another run than"):
        drive(two, "new")


def test_a_run_that_was_fetched_by_half_is_fetched_again(nodes):
    one, two = nodes
    drive(one, "old")
    drive(two, "new")
    (one[1] / "report.html").unlink()
    (one[1] / "report.html").mkdir()  # in the way
    with suppress(OSError):
        report(one)
    (one[1] / "report.html").rmdir()
    assert report(one) == "new"
