"""What launching costs, how busy slots are, how it grows with nodes, and 500 branches in one ledger (cluster.md)."""

from __future__ import annotations

import multiprocessing
import shutil
import statistics
import time
from contextlib import contextmanager

import pytest
import ray

from branches.data.dataset import Dataset
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
from tests.benchmarks.measured import launched
from tests.cluster.conftest import SOCKETS_STAY_OPEN, ray_cluster
from tests.commands import checksums
from tests.tables import make_table

pytestmark = [pytest.mark.benchmark, SOCKETS_STAY_OPEN]


def test_overhead_of_a_branch_over_a_bare_process(tmp_path):
    """Each of 16 branches that do nothing, on two slots, against processes that are started one by one."""
    bare, ours, driver = [], [], []
    with session(num_cpus=2):
        for i in range(3):
            began = time.time()
            for _ in range(16):
                process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(0,))
                process.start()
                process.join()
            bare.append((time.time() - began) / 16)
            began = time.process_time()
            ours.append(launched(tmp_path / str(i), 16, seconds=0)[0] / 16)
            driver.append((time.process_time() - began) / 16)
    ours, bare, driver = map(statistics.median, (ours, bare, driver))
    print(f"\nper empty branch: {ours:.2f} s, {ours / bare:.1f} × a bare process; {1000 * driver:.0f} ms of the driver")
    assert ours - bare < 1


@contextmanager
def nodes(count, **resources):
    """A cluster of equal nodes; GPUs are what only Ray believes in."""
    with ray_cluster(**resources) as cluster:
        for _ in range(count - 1):
            cluster.add_node(**resources)
        ray.init(address=cluster.address, log_to_driver=False)
        yield


@pytest.mark.parametrize("gpus", [0, 1])
def test_share_of_time_that_slots_are_busy(tmp_path, gpus):
    with nodes(1, num_cpus=2, num_gpus=2 * gpus):
        began = time.time()
        total, spans = launched(tmp_path / "run", 24, 20, gpus)
    busy = sum(end - begin for begin, end in spans) / (2 * total)
    ends = sorted(end for _, end in spans)
    waits = [begin - end for (begin, _), end in zip(spans[2:], ends, strict=False)]
    print(f"\n24 branches of 20 s on 2 slots, {gpus} GPU each: busy {busy:.1%} of {total:.0f} s")
    print(f"the first works after {spans[0][0] - began:.1f} s; a slot waits {statistics.median(waits):.2f} s")
    assert busy > 0.9


def test_efficiency_on_four_nodes(tmp_path):
    """Nodes of one CPU and one GPU, start of their processes included."""
    seconds = {}
    for count in (1, 2, 4):
        with nodes(count, num_cpus=1, num_gpus=1):
            seconds[count], _ = launched(tmp_path / str(count), 24, 20, 1)
        efficiency = seconds[1] / (count * seconds[count])
        print(f"\n24 branches of 20 s on {count} nodes: {seconds[count]:.0f} s, efficiency {efficiency:.2f}")
    assert efficiency > 0.85  # four nodes import at once on this machine's cores


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
