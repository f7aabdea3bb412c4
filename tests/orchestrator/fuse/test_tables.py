"""Score tables of a real MLflow store, to which a ledger was sent without training."""

import csv
import json

import pytest
from mlflow import MlflowClient

from orchestrator.tracking.outbox import Outbox
from orchestrator.tracking.tracker import open_tracker
from tests.commands import tutti_here
from tests.fusion.pools import make_pool
from tests.orchestrator.ledgers import empty_store, finished_branch

EXPERIMENT = "out on data"


@pytest.fixture
def ledger(tmp_path, shared):
    """Adds a branch with a score table to a run folder and sends it to a store; how its tables are asked for."""
    uri = empty_store(shared, tmp_path / "mlflow.db")
    MlflowClient(uri).create_experiment(EXPERIMENT, artifact_location=str(tmp_path / "artifacts"))
    tables = iter(make_pool(("fan", "pump"), 6).values())

    def add(name, run="run", system="one"):
        (tmp_path / run).mkdir(exist_ok=True)
        finished_branch(tmp_path / run, name, next(tables), "knn-k2.5", tags={"system": system})
        assert Outbox(open_tracker(uri, tmp_path / run, EXPERIMENT), tmp_path / run).close("FINISHED") == 0
        return ["fuse", "--out", tmp_path / "fused", "--tracking-uri", uri, "--experiment", EXPERIMENT]

    return add


def test_a_stores_tables_become_a_folder_with_an_index(ledger, tmp_path):
    store = ledger("baseline/log_mel/0", system="")
    assert "experiment 'out on data' has no finished branch" in tutti_here(*store).stderr
    assert "has no experiment 'none'" in tutti_here(*store[:-1], "none").stderr
    ledger("near/arcface/0")
    ledger("far/softmax/1")
    client = MlflowClient(store[4])
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    client.create_run(experiment, tags={"role": "branch", "system": "one"}, run_name="near/half_sent/0")
    results = [json.loads(tutti_here(*store, "--json").stdout) for _ in range(2)]
    assert results[0] == results[1]
    assert results[0]["tree"] == {
        "far": {"softmax-knn-k2.5": ["far-softmax-1/tables/knn-k2.5"]},
        "near": {"arcface-knn-k2.5": ["near-arcface-0/tables/knn-k2.5"]},
    }
    again = tutti_here("fuse", "--tables", tmp_path / "fused" / "store_tables", *store[1:3], "--json")
    assert json.loads(again.stdout) == results[0]  # nothing is fused once more
    other = ledger("far/softmax/1", run="another")
    (run,) = client.search_runs([experiment], "attributes.run_name = 'another'")
    of_one_run = json.loads(tutti_here(*other, "--run", run.info.run_id, "--json").stdout)
    assert of_one_run["tree"] == {"far": {"softmax-knn-k2.5": ["far-softmax-1/tables/knn-k2.5"]}}
    assert "has no finished branch under run none" in tutti_here(*other, "--run", "none").stderr
    # Two branches of one name are not taken for one.
    assert "has seed 1 of far/softmax-knn-k2.5 a second time" in tutti_here(*other).stderr
    with open(tmp_path / "fused" / "store_tables" / "index.csv") as file:  # which a person can change
        tables = [row["table"] for row in csv.DictReader(file)]
    assert len({*tables}) == len(list((tmp_path / "fused").rglob("knn*.parquet"))) == 3
