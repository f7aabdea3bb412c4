"""1 000 GPUs and 10 000 branches, simulated from what was measured on one machine: what breaks first?

The driver is one server: it starts branches, hears their reports and writes down their ends, one after the other. The
shared storage is another: checkpoints and results go through it. Both are measured by `test_cluster.py` and on paper
(docs/cluster.md); nothing here has run on 1 000 GPUs.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import pytest

pytestmark = pytest.mark.benchmark

REPORTS = 50  # of a branch


@dataclass(frozen=True)
class Costs:
    """Of one branch.

    event: seconds of the driver to start a branch, and again to end it
    report: seconds of the driver to hear a report
    launch: seconds until a branch's process works, on its own node
    checkpoint, results: gigabytes
    storage: gigabytes a second of the shared storage
    send: seconds to send a branch to MLflow
    """

    event: float = 0.008
    report: float = 0.001
    launch: float = 0.1
    checkpoint: float = 1.5
    results: float = 0.4
    storage: float = 5.0
    send: float = 0.044


def simulate(gpus: int, branches: int, seconds: float, costs: Costs) -> tuple[float, float]:
    """Share of the GPUs' time that is spent in branches, and of the driver's time that it works.

    Branches last `seconds` in the mean, with a spread of a third. Reports are taken from the driver's time as they
    come; starts and ends queue for it.
    """
    rng = np.random.default_rng(0)
    lasting = rng.gamma(9, seconds / 9, branches)
    driver = busy = 0.0
    running: list[float] = []
    for number, length in enumerate(lasting):
        free = heapq.heappop(running) if number >= gpus else 0.0
        # The end of the branch before, the start of this one, and the reports that came meanwhile.
        work = costs.event * (2 if number >= gpus else 1) + REPORTS * costs.report
        driver = max(driver, free) + work
        busy += work
        heapq.heappush(running, driver + costs.launch + length)
    total = max(running)
    return lasting.sum() / (gpus * total), busy / total


def test_what_breaks_first():
    costs = Costs()
    print("\n   GPUs  branches  seconds  GPUs busy  driver busy  storage GB/s (a checkpoint a minute; one in 30 min)")
    for gpus, branches in ((8, 80), (100, 1000), (1000, 10_000)):
        for seconds in (20, 120, 600, 1800):
            used, driver = simulate(gpus, branches, seconds, costs)
            often, rarely = (gpus * (costs.checkpoint / t + costs.results / seconds) for t in (60, 1800))
            print(f"{gpus:7d} {branches:9d} {seconds:8d} {used:10.2f} {driver:12.2f} {often:14.1f}; {rarely:.1f}")
            assert used <= 1
    ends = 10_000 * costs.send / 3600
    print(f"10 000 branches one after the other into MLflow: {ends:.1f} h, beside {10 * 1800 / 3600:.0f} h of training")
