"""A report of many configurations: CPU seconds and bytes."""

import json
import math
import time

import pytest

from fusion.search import fuse
from orchestrator.fuse.result import describe, described_table
from orchestrator.report.page import write_report
from scoring.table import write_table
from tests.tables import make_table

pytestmark = pytest.mark.benchmark


def fused(folder, configurations):
    """The folder of a fusion; one machine, on which nothing is searched for."""
    tables = {f"b{i}/m": make_table(["fan"], seed=i) for i in range(configurations)}
    fusion = fuse(tables, {f"s{s}": {name: [name] for name in [*tables][s::5]} for s in range(5)})
    folder.mkdir()
    write_table(fusion.table, folder / "fused.parquet")
    branches = [described_table(name, name, "m", table) for name, table in tables.items()]
    result = json.dumps({"system": "large", "branches": branches, "made": {}, **describe(fusion)})
    (folder / "result.json").write_text(result)
    return folder


def test_a_report_of_500_configurations(tmp_path):
    seconds, size = {}, {}
    for n in (8, 125, 250, 500):  # the first one loads what is needed
        folder = fused(tmp_path / str(n), n)
        began = time.process_time()
        size[n] = write_report(folder).stat().st_size
        seconds[n] = time.process_time() - began
        print(f"\n{n} configurations: {seconds[n]:.1f} s, {size[n] / 1e6:.2f} MB", end="")
    exponents = [math.log2(cost[500] / cost[125]) / 2 for cost in (seconds, size)]
    print("; exponents {:.2f}, {:.2f}".format(*exponents))
    assert max(exponents) < 1.1
    assert max(seconds[500] / 10, size[500] / 2e6) < 1
