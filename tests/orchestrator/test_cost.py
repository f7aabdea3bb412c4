"""The cost of a branch follows the size of its backbone, which is read off a file that is there."""

import shutil

import fsspec
import pytest

from branches.checkpoint_files import SMALL, SMALL_SHA256
from branches.data.synthetic import SyntheticSize, write_dataset
from branches.spec import BranchSpec
from orchestrator.cost import duration, petaflop
from orchestrator.overview import overview
from orchestrator.preflight import with_resolved_files
from orchestrator.system import SystemSpec


def cost(path, **settings):
    return petaflop(BranchSpec.model_validate({"backbone": {"path": str(path)}, **settings}), 1000)


def test_the_size_of_a_file_counts(tmp_path):
    copy = shutil.copy(SMALL, tmp_path / "mine.pt")
    assert cost(copy) == pytest.approx(cost("small"), rel=0.6)  # the file is in half precision
    assert cost(tmp_path / "not_yet_there.pt") > 50 * cost(copy)


def test_what_is_not_trained_costs_less():
    costs = [cost("tiny", strategy=name) for name in ("frozen", "head", "lora", "full")]
    assert costs == sorted(set(costs))


def test_a_plan_fetches_no_checkpoint(tmp_path, monkeypatch):
    cache, data = tmp_path / "cache", tmp_path / "data"
    monkeypatch.setenv("TUTTI_CACHE", str(cache))
    write_dataset(data, SyntheticSize(3, 2, 1, 1.0), machines=["rotor"])
    fsspec.filesystem("memory").pipe("/small.pt", SMALL.read_bytes())

    def planned(**digest):
        branch = {"backbone": {"path": "memory://small.pt", **digest}}
        system = SystemSpec.model_validate({"name": "mine", "subsystems": {"one": {"a": {"branch": branch}}}})
        found = overview([system], data, tmp_path / "out")
        return system, found["branches"][0]["branch_id"], found["notes"]

    system, _, notes = planned()
    assert "memory://small.pt is not in the cache" in notes[0]
    assert "provisional" in notes[0]
    assert planned(sha256=SMALL_SHA256[:8])[2]
    _, branch_id, notes = planned(sha256=SMALL_SHA256)
    assert not notes
    assert not cache.exists()
    assert with_resolved_files(system).subsystems["one"]["a"].branch.backbone.sha256 == SMALL_SHA256
    assert planned(sha256=SMALL_SHA256[:8])[1:] == (branch_id, [])


def test_durations():
    assert [duration(seconds) for seconds in (8.2, 89, 91, 5300, 11100)] == [
        "8 s",
        "89 s",
        "2 min",
        "88 min",
        "3 h 05 min",
    ]
