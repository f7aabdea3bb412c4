"""Score tables of a real MLflow store, to which a ledger was sent without training."""

import json

import pytest

from orchestrator.ledger.folders import BRANCHES, Record, write_record
from orchestrator.tracking.outbox import Outbox
from orchestrator.tracking.tracker import open_tracker
from scoring.table import write_table
from tests.commands import checksums, tutti_here
from tests.fusion.pools import make_pool

EXPERIMENT = "out on data"


@pytest.fixture
def ledger(tmp_path):
    """Adds a branch with a score table to a run folder and sends it to the store there."""
    out = tmp_path / "run"
    out.mkdir()
    tables = iter(make_pool(("fan", "pump"), 6).values())

    def add(branch_id, name, system="one"):
        folder = out / BRANCHES / branch_id
        (folder / "tables").mkdir(parents=True)
        write_table(next(tables), folder / "tables" / "knn-k2.5.parquet")
        identity, files = {"role": "branch", "branch_id": branch_id}, checksums(folder)
        record = Record(name=name, identity=identity, tags={"system": system}, files=files, tables={"knn-k2.5": "id"})
        write_record(folder, record)
        assert Outbox(open_tracker(None, out, EXPERIMENT), out).close("FINISHED") == 0
        return ["fuse", "--tracking-uri", f"sqlite:///{out / 'mlflow.db'}", "--experiment", EXPERIMENT]

    return add


def test_a_stores_tables_become_a_folder_with_an_index(ledger, tmp_path):
    out = tmp_path / "fused"
    store = ledger("b0", "baseline/log_mel/0", system="")
    assert "experiment 'out on data' has no finished branch" in tutti_here(*store, "--out", out).stderr
    assert "has no experiment 'none'" in tutti_here(*store[:-1], "none", "--out", out).stderr
    ledger("b1", "near/arcface/0")
    ledger("b2", "far/softmax/1")
    results = [json.loads(tutti_here(*store, "--out", out, "--json").stdout) for _ in range(2)]
    assert results[0] == results[1]
    assert results[0]["tree"] == {
        "far": {"softmax-knn-k2.5": ["far-softmax-1/tables/knn-k2.5"]},
        "near": {"arcface-knn-k2.5": ["near-arcface-0/tables/knn-k2.5"]},
    }
    again = json.loads(tutti_here("fuse", "--tables", out / "store_tables", "--out", out, "--json").stdout)
    assert again == results[0]  # nothing is fused once more


def test_two_branches_of_one_name_are_not_taken_for_one(ledger, tmp_path):
    ledger("b1", "near/arcface/0")
    store = ledger("b2", "near/arcface/0")
    run = tutti_here(*store, "--out", tmp_path / "fused")
    assert run.exit_code == 2
    assert "has seed 0 of near/arcface-knn-k2.5 a second time" in run.stderr
    assert len(list((tmp_path / "fused").rglob("*.parquet"))) == 2  # whose index a person can change
