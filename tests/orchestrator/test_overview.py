"""What `tutti plan` knows of a backbone that a run would fetch."""

import fsspec

from branches.checkpoint_files import SMALL, SMALL_SHA256
from orchestrator.overview import overview
from orchestrator.preflight import with_resolved_files
from orchestrator.system import SystemSpec


def test_a_plan_fetches_no_checkpoint(dataset, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("TUTTI_CACHE", str(cache))
    fsspec.filesystem("memory").pipe("/small.pt", SMALL.read_bytes())

    def planned(**digest):
        branch = {"backbone": {"path": "memory://small.pt", **digest}}
        system = SystemSpec.model_validate({"name": "mine", "subsystems": {"one": {"a": {"branch": branch}}}})
        found = overview([system], dataset, tmp_path / "out")
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
