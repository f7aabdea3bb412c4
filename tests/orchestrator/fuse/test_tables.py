"""Score tables of a real MLflow store, to which a ledger was sent without training."""

import csv
import json

from tests.commands import tutti_here
from tests.fusion.pools import make_pool
from tests.orchestrator.ledgers import EXPERIMENT, Ledger, empty_store, finished_branch


def test_a_stores_tables_become_a_folder_with_an_index(tmp_path, shared):
    uri, out, tables = (
        empty_store(shared, tmp_path / "mlflow.db"),
        tmp_path / "fused",
        iter(make_pool(["fan"], 6).values()),
    )
    one, two = (Ledger(tmp_path / name, shared, uri) for name in ("one", "two"))
    experiment = one.client.create_experiment(EXPERIMENT, artifact_location=str(tmp_path / "artifacts"))

    def add(ledger, name, system="s1"):
        finished_branch(ledger.out, name, next(tables), "knn-k2.5", tags={"system": system})
        assert ledger.outbox.close("FINISHED") == 0

    def fuse(*options):
        run = tutti_here("fuse", "--out", out, "--tracking-uri", uri, "--experiment", EXPERIMENT, "--json", *options)
        return json.loads(run.stdout) if run.exit_code == 0 else run.stderr

    add(one, "baseline/log_mel/0", system="")
    assert "experiment 'out on data' has no finished branch" in fuse()
    assert "has no experiment 'none'" in fuse("--experiment", "none")
    add(one, "near/arcface/0")
    add(one, "far/softmax/1")
    one.client.create_run(experiment, tags={"role": "branch", "system": "s1"}, run_name="near/half_sent/0")
    far, result = {"softmax-knn-k2.5": ["far-softmax-1/tables/knn-k2.5"]}, fuse()
    assert result["tree"] == {"far": far, "near": {"arcface-knn-k2.5": ["near-arcface-0/tables/knn-k2.5"]}}
    again = tutti_here("fuse", "--tables", out / "store_tables", "--out", out, "--json")
    assert json.loads(again.stdout) == fuse() == result  # nothing is fused once more
    add(two, "far/softmax/1")
    (run,) = two.client.search_runs([experiment], "attributes.run_name = 'two'")
    assert fuse("--run", run.info.run_id)["tree"] == {"far": far}
    assert "has no finished branch under run none" in fuse("--run", "none")
    # Two branches of one name are not taken for one.
    assert "has seed 1 of far/softmax-knn-k2.5 a second time" in fuse()
    with open(out / "store_tables" / "index.csv") as file:  # which a person can change
        tables = {row["table"] for row in csv.DictReader(file)}
    assert len(tables) == len(list(out.rglob("knn*.parquet"))) == 3
