import numpy as np
import pytest

import fusion.tasks
from fusion.hierarchy import configurations_of, parts_of
from fusion.tasks import FOLDS, Problem, Task, clip_folds, run_here, search_all, search_weights, tasks_of
from tests.fusion.pools import TREE, labelled, make_pool, turned


def problem_of(tables, seed=0):
    scores = labelled(tables)
    return Problem(configurations_of(scores, TREE), parts_of(TREE), clip_folds(scores, seed), seed)


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
    task = Task(frozenset({"pump"}))
    problem, other = problem_of(tables), problem_of(turned(tables, "pump"))
    assert same(search_weights(problem, task), search_weights(other, task))
    assert not same(search_weights(problem, Task()), search_weights(other, Task()))


def test_a_fold_left_out_has_no_say(tables):
    problem = problem_of(tables)
    values = problem.configurations.values.copy()
    values[:, problem.folds == 2] *= -1
    other = Problem(problem.configurations.with_values(values), problem.parts, problem.folds, 0)
    assert same(search_weights(problem, Task(fold=2)), search_weights(other, Task(fold=2)))


def test_folds_are_even_in_every_stratum(tables):
    scores = labelled(tables)
    folds = clip_folds(scores, 0)
    for stratum in scores.strata():
        counts = np.bincount(folds[stratum], minlength=FOLDS)
        assert counts.max() - counts.min() <= 1


def test_the_seed_and_the_task_decide(tables):
    problem = problem_of(tables)
    assert same(search_weights(problem, Task()), search_weights(problem, Task()))
    assert not same(search_weights(problem, Task()), search_weights(problem_of(tables, seed=1), Task()))
    assert len({task.name for task in tasks_of(problem)}) == len(tasks_of(problem)) == 7 + FOLDS


def test_the_order_of_execution_changes_nothing(tables, monkeypatch):
    monkeypatch.setattr(fusion.tasks, "tasks_of", lambda problem: [Task(), Task(frozenset(["fan"])), Task(fold=1)])
    problem = problem_of(tables)
    forward = search_all(problem, run_here)
    backward = search_all(problem, lambda p, tasks: run_here(p, tasks[::-1]))
    assert all(same(forward[task], backward[task]) for task in forward)
    assert list(backward) == list(forward)
