import numpy as np
import pytest

import fusion.tasks
from fusion.hierarchy import configurations_of, parts_of
from fusion.tasks import Problem, run_here, search_all, search_weights
from fusion.validation import NOBODY
from tests.fusion.pools import TREE, labelled, make_pool, turned


def problem_of(tables, seed=0):
    return Problem(configurations_of(labelled(tables), TREE), parts_of(TREE), seed)


def same(one, other):
    return all(
        np.array_equal(weights, other[method][strength])
        for method, path in one.items()
        for strength, weights in path.items()
    )


@pytest.fixture(scope="module")
def tables():
    return make_pool(per_cell=12)


def test_a_machine_left_out_has_no_say(tables):
    problem, other, pump = problem_of(tables), problem_of(turned(tables, "pump")), frozenset({"pump"})
    assert same(search_weights(problem, pump), search_weights(other, pump))
    assert not same(search_weights(problem, NOBODY), search_weights(other, NOBODY))


def test_the_seed_decides_and_the_order_of_execution_changes_nothing(tables, monkeypatch):
    monkeypatch.setattr(fusion.tasks, "sets_left_out", lambda machines: [NOBODY, frozenset(["fan"])])
    problem = problem_of(tables)
    forward = search_all(problem, run_here)
    backward = search_all(problem, lambda p, tasks: run_here(p, tasks[::-1]))
    assert all(same(forward[left_out], backward[left_out]) for left_out in forward)
    assert not same(forward[NOBODY], search_weights(problem_of(tables, seed=1), NOBODY))
