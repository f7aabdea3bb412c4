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


@pytest.fixture
def few_tasks(monkeypatch):
    """Three tasks, and a list of those that were searched."""
    searched = []
    monkeypatch.setattr(fusion.tasks, "tasks_of", lambda problem: [Task(), Task(frozenset(["fan"])), Task(fold=1)])

    def runner(problem, tasks):
        for task in tasks:
            searched.append(task)
            yield task, search_weights(problem, task)

    return runner, searched


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


def test_finished_searches_are_kept_and_damaged_ones_made_again(tables, few_tasks, tmp_path):
    runner, searched = few_tasks
    problem = problem_of(tables)
    first = search_all(problem, runner, tmp_path)
    assert len(searched) == 3
    damaged, emptied, _ = sorted(tmp_path.iterdir())
    damaged.write_bytes(damaged.read_bytes()[:100])
    emptied.write_bytes(b"")
    again = search_all(problem, runner, tmp_path)
    assert len(searched) == 5
    assert all(same(first[task], again[task]) for task in first)
    assert list(again) == list(first)


def test_an_interruption_keeps_what_is_finished(tables, few_tasks, tmp_path):
    runner, searched = few_tasks

    def interrupted(problem, tasks):
        yield from runner(problem, tasks[:2])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search_all(problem_of(tables), interrupted, tmp_path)
    search_all(problem_of(tables), runner, tmp_path)
    assert len(searched) == 3


def test_the_order_of_execution_changes_nothing(tables, few_tasks):
    problem = problem_of(tables)
    forward = search_all(problem, few_tasks[0])
    backward = search_all(problem, lambda p, tasks: run_here(p, tasks[::-1]))
    assert all(same(forward[task], backward[task]) for task in forward)
