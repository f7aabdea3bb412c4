"""What launching costs, how busy the slots are, how it grows with nodes, and 500 branches in one ledger.

Branches sleep here, so that the figures are of the launching and not of the training.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
import statistics
import time
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from branches.data.dataset import Dataset
from branches.data.synthetic import SyntheticSize, write_dataset
from cluster.session import session
from orchestrator.ledger.folders import BRANCHES, SYSTEMS, TABLES, write_record
from orchestrator.overview import overview
from orchestrator.plan import make_plan
from orchestrator.system import SystemSpec
from orchestrator.tracking.outbox import Outbox
from orchestrator.tracking.tracker import open_tracker
from orchestrator.training.launch import unfinished
from orchestrator.training.worker import branch_record
from scoring.table import write_table
from tests.benchmarks.sleeping import Sleeper, launched
from tests.commands import checksums
from tests.tables import make_table

pytestmark = pytest.mark.benchmark


def test_overhead_of_a_branch_over_a_bare_process(tmp_path):
    """Each of 16 branches that do nothing, on two slots, against processes that are started one by one."""
    bare, ours = [], []
    with session(num_cpus=2):
        for i in range(3):
            began = time.time()
            for _ in range(16):
                process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(0,))
                process.start()
                process.join()
            bare.append((time.time() - began) / 16)
            ours.append(launched(tmp_path / str(i), 16, Sleeper(0))[0] / 16)
    ratio = statistics.median(ours) / statistics.median(bare)
    print(f"\nper empty branch: {statistics.median(ours):.2f} s, {ratio:.1f} × a bare process")
    assert statistics.median(ours) - statistics.median(bare) < 1


@pytest.mark.parametrize("gpus", [0, 1])
def test_share_of_time_that_slots_are_busy(tmp_path, gpus):
    """With GPUs too, which only Ray believes in."""
    import ray

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 2 * gpus})
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        total, spans = launched(tmp_path / "run", 24, Sleeper(20), gpus)
    finally:
        ray.shutdown()
        cluster.shutdown()
    busy = sum(end - begin for begin, end in spans)
    print(f"\n24 branches of 20 s on 2 slots, {gpus} GPU each: busy {100 * busy / (2 * total):.1f} % of {total:.0f} s")
    assert busy / (2 * total) > 0.95


def test_efficiency_on_four_nodes(tmp_path):
    """Nodes of one CPU and one GPU that only Ray believes in, start of their processes included."""
    import ray

    seconds = {}
    for nodes in (1, 2, 4):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 1})
        try:
            for _ in range(nodes - 1):
                cluster.add_node(num_cpus=1, num_gpus=1)
            ray.init(address=cluster.address, log_to_driver=False)
            seconds[nodes] = launched(tmp_path / str(nodes), 24, Sleeper(20), 1)[0]
        finally:
            ray.shutdown()
            cluster.shutdown()
        efficiency = seconds[1] / (nodes * seconds[nodes])
        print(f"\n24 branches of 20 s on {nodes} nodes: {seconds[nodes]:.0f} s, efficiency {efficiency:.2f}")
    assert efficiency > 0.85  # four nodes import at once on this machine's cores


def test_driver_with_many_branches(tmp_path):
    """CPU time and memory of the driver for branches that do and report nothing."""
    with session(num_cpus=2):
        launched(tmp_path / "warm", 4, Sleeper(0))
        for count in (50, 200, 800):
            cpu, memory = time.process_time(), resident_mib()
            launched(tmp_path / str(count), count, Sleeper(0))
            spent = (time.process_time() - cpu) / count
            print(f"\n{count} branches: {1000 * spent:.0f} ms of the driver each, {resident_mib() - memory:+.0f} MiB")


def resident_mib():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_500_branches(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    write_dataset(data, SyntheticSize(3, 2, 1, 1.0), machines=["rotor"])
    configuration = {"branch": {"backbone": {"path": "tiny"}}, "seeds": list(range(500))}
    system = SystemSpec.model_validate({"name": "many", "subsystems": {"a": {"b": configuration}}})
    began = time.time()
    plan = make_plan([system], Dataset.read(data))
    write_table(make_table(machines="abcdefg", per_cell=50, train=1000), tmp_path / "table.parquet")
    for branch in plan.branches:
        fill(out / BRANCHES / branch.branch_id, branch, tmp_path / "table.parquet")
    (out / SYSTEMS).mkdir()
    tracker = open_tracker(None, out, "many")
    outbox = Outbox(tracker, out)
    print(f"\n500 records written in {time.time() - began:.1f} s")
    took = {}
    for name, action in {
        "sent to MLflow": outbox.send,
        "planned": lambda: overview([system], data, out),
        "resumed": lambda: unfinished(plan.branches, out),
        "listed": tracker.sent,
    }.items():
        began = time.time()
        result = action()
        took[name] = time.time() - began
        print(f"500 branches {name} in {took[name]:.1f} s")
        assert name != "planned" or result["to_train"] == 0
        assert name != "resumed" or not result
        assert name != "listed" or len(result) == 501
    assert took["planned"] + took["listed"] < 10
    assert took["resumed"] < 10


def fill(folder, branch, table):
    (folder / TABLES).mkdir(parents=True)
    shutil.copyfile(table, folder / TABLES / f"{branch.scorings[0].name}.parquet")
    found = {"curve": [(step, 1.0) for step in range(50)], "files": checksums(folder), "tables": branch.tables}
    write_record(folder, branch_record(branch, "data").model_copy(update=found))
