"""What a fusion costs as machines and configurations become more."""

import numpy as np
import pytest

from fusion.methods import METHODS
from fusion.search import fuse
from orchestrator.fuse.result import describe, described_table, read_result, write_result
from tests.benchmarks.growth import grows
from tests.fusion.pools import TREE, make_pool

pytestmark = pytest.mark.benchmark


def test_machines_beyond_a_dozen_are_left_out_in_groups():
    pools = {n: make_pool([f"m{i}" for i in range(n)], 20) for n in (10, 20, 40)}
    grows("machines in a fusion", lambda n: fuse(pools[n], TREE), 10, most=1)


def test_a_result_of_a_thousand_configurations(tmp_path):
    table = make_pool([f"m{i}" for i in range(7)], 5)["g0"]
    described = described_table("t", "a/t/0", "knn", table)
    for n in (250, 500, 1000):
        names, about = [f"t{i}" for i in range(n)], {"system": "s", "branches": [described] * n, "made": {}}
        fusion = fuse(dict.fromkeys(names, table), {"a": {name: [name] for name in names}}, runner=uniform_only)
        (tmp_path / str(n)).mkdir()
        write_result(tmp_path / str(n), about | describe(fusion))
    assert grows("configurations in a result", lambda n: read_result(tmp_path / str(n)), 250) < 0.2
    assert (tmp_path / "1000" / "result.json").stat().st_size < 5e6


def uniform_only(problem, tasks):
    """The runner of no search: every method finds uniform weights."""
    weights = np.full(len(problem.configurations.values), 1 / len(problem.configurations.values))
    yield from ((left_out, {m: {"": weights} for m in METHODS}) for left_out in tasks)
