"""500 branches in one ledger (cluster.md)."""

import shutil
import time

import pytest

from branches.data.dataset import Dataset
from orchestrator.ledger.folders import BRANCHES, SYSTEMS, TABLES, write_record
from orchestrator.overview import overview
from orchestrator.plan import make_plan
from orchestrator.system import SystemSpec
from orchestrator.tracking.outbox import Outbox
from orchestrator.tracking.tracker import open_tracker
from orchestrator.training.launch import unfinished
from orchestrator.training.worker import branch_record
from scoring.table import write_table
from tests.commands import checksums
from tests.tables import make_table

pytestmark = pytest.mark.benchmark


def test_500_branches(dataset, tmp_path):
    configuration = {"branch": {"backbone": {"path": "tiny"}}, "seeds": list(range(500))}
    system = SystemSpec.model_validate({"name": "many", "subsystems": {"a": {"b": configuration}}})
    plan, out = make_plan([system], Dataset.read(dataset)), tmp_path / "out"
    write_table(make_table(machines="abcdefg", per_cell=50, train=1000), tmp_path / "table.parquet")
    for branch in plan.branches:
        folder = out / BRANCHES / branch.branch_id
        (folder / TABLES).mkdir(parents=True)
        shutil.copyfile(tmp_path / "table.parquet", folder / TABLES / f"{branch.scorings[0].name}.parquet")
        found = {"curve": [(step, 1.0) for step in range(50)], "files": checksums(folder), "tables": branch.tables}
        write_record(folder, branch_record(branch, "data").model_copy(update=found))
    (out / SYSTEMS).mkdir()
    tracker, took, results = open_tracker(None, out, "many"), {}, {}
    for name, action in {
        "sent to MLflow": Outbox(tracker, out).send,
        "planned": lambda: overview([system], dataset, out),
        "resumed": lambda: unfinished(plan.branches, out),
        "listed": tracker.sent,
    }.items():
        began = time.time()
        results[name], took[name] = action(), time.time() - began
        print(f"\n500 branches {name} in {took[name]:.1f} s", end="")
    assert results["planned"]["to_train"] == len(results["resumed"]) == 0
    assert len(results["listed"]) == 501
    assert took["planned"] + took["listed"] < 10
    assert took["resumed"] < 10
