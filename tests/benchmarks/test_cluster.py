"""What launching costs, how busy the slots are, how it grows with nodes, and 500 branches in one ledger.

Branches sleep here, so that the figures are of the launching and not of the training.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import statistics
import time

import pytest

from branches.dataset import fingerprint, read_index
from branches.spec import BranchSpec
from branches.synthetic import SyntheticSize, write_dataset
from cluster.session import session
from orchestrator.ledger import BRANCHES, SYSTEMS, TABLES, Record, checksums, write_record
from orchestrator.outbox import Outbox
from orchestrator.overview import overview
from orchestrator.pipeline import _finished_tables
from orchestrator.plan import Branch, detector_id, make_plan
from orchestrator.spec import SystemSpec
from orchestrator.tracking import open_tracker
from orchestrator.worker import Job
from scoring.detectors import MahalanobisSpec
from scoring.table import write_table
from tests.tables import make_table

pytestmark = pytest.mark.benchmark


def sleeping(count):
    return [Branch(f"{i:016d}", "", str(i), ("s",), BranchSpec(seed=i), (MahalanobisSpec(),)) for i in range(count)]


def sleeper(seconds):
    """Work that sleeps and notes when; a closure, so that workers need not find this module."""

    def work(branch, job, index, report):
        begin = time.time()
        time.sleep(seconds)
        (job.out / branch.branch_id).write_text(json.dumps([begin, time.time()]))

    return work


def launched(folder, count, seconds):
    """Seconds that `launch` takes in all, and the span of each branch's work."""
    from orchestrator.launch import launch

    folder.mkdir()
    job = Job(folder, folder, folder, folder, "", 1, 0.0, 60.0, "", ())
    began = time.time()
    failures = launch(sleeping(count), job, make_table().select([]), folder / "tune", sleeper(seconds))
    total = time.time() - began
    assert not failures
    return total, [json.loads(path.read_text()) for path in folder.iterdir() if path.is_file()]


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
            ours.append(launched(tmp_path / str(i), 16, 0)[0] / 16)
    ratio = statistics.median(ours) / statistics.median(bare)
    print(f"\nper empty branch: {statistics.median(ours):.2f} s, {ratio:.1f} × a bare process")
    assert statistics.median(ours) < 4


def test_share_of_time_that_slots_are_busy(tmp_path):
    with session(num_cpus=2):
        total, spans = launched(tmp_path / "run", 24, 20)
    busy = sum(end - begin for begin, end in spans)
    print(f"\n24 branches of 20 s on 2 slots: busy {100 * busy / (2 * total):.1f} % of {total:.0f} s")
    assert busy / (2 * total) > 0.9


def test_efficiency_on_four_nodes(tmp_path):
    import ray
    from ray.cluster_utils import Cluster

    seconds = {}
    for nodes in (1, 4):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            for _ in range(nodes - 1):
                cluster.add_node(num_cpus=1)
            ray.init(address=cluster.address, log_to_driver=False)
            seconds[nodes] = launched(tmp_path / str(nodes), 12, 10)[0]
        finally:
            ray.shutdown()
            cluster.shutdown()
    efficiency = seconds[1] / (4 * seconds[4])
    print(f"\n12 branches of 10 s: {seconds[1]:.0f} s on 1 node, {seconds[4]:.0f} s on 4, efficiency {efficiency:.2f}")
    assert efficiency > 0.7


def test_500_branches(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    write_dataset(data, SyntheticSize(3, 2, 1, 1.0), machines=["rotor"])
    configuration = {"branch": {"backbone": {"path": "tiny"}}, "seeds": list(range(500))}
    system = SystemSpec.model_validate({"name": "many", "subsystems": {"a": {"b": configuration}}})
    began = time.time()
    plan = make_plan([system], fingerprint(data, read_index(data)))
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
        "resumed": lambda: _finished_tables(plan.branches, out),
        "listed": tracker.sent,
    }.items():
        began = time.time()
        result = action()
        took[name] = time.time() - began
        print(f"500 branches {name} in {took[name]:.1f} s")
        assert name != "planned" or result["to_train"] == 0
        assert name not in ("resumed", "listed") or len(result) == 500
    assert took["planned"] + took["listed"] < 10
    assert took["resumed"] < 10


def fill(folder, branch, table):
    (folder / TABLES).mkdir(parents=True)
    shutil.copyfile(table, folder / TABLES / f"{detector_id(branch.detectors[0])}.parquet")
    curve = [(step, 1.0) for step in range(50)]
    identity = {"role": "branch", "branch_id": branch.branch_id}
    write_record(folder, Record(name=branch.name, identity=identity, curve=curve, files=checksums(folder)))
