"""The searches of one fusion: every method on all development machines, and again without some of them.

One task is one set of clips with all methods on it. Tasks know nothing of each other: they may run anywhere, in any
order, and what they find depends on the problem alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from fusion.hierarchy import Parts, Weights
from fusion.labelled import LabelledScores
from fusion.methods import METHODS
from fusion.validation import Machines, sets_left_out

FOLDS = 4
PROGRESS_SECONDS = 2.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Problem:
    """What every search reads.

    configurations: scores of the K configurations on the labelled clips
    parts: the sub-systems' places among them
    folds: (rows,) fold of each clip
    seed: of the searches
    """

    configurations: LabelledScores
    parts: Parts
    folds: NDArray[np.int64]
    seed: int


@dataclass(frozen=True)
class Task:
    """All searches on the clips of all machines but some, and of all folds but one."""

    left_out: Machines = frozenset()
    fold: int | None = None

    @property
    def name(self) -> str:
        """A name that tells tasks of one problem apart."""
        return "/".join(sorted(self.left_out)) if self.fold is None else f"fold {self.fold}"


Found = dict[str, dict[str, Weights]]
# Runs `search_weights` for each task, anywhere, and gives each result as it is there.
Runner = Callable[[Problem, Sequence[Task]], Iterator[tuple[Task, Found]]]


def tasks_of(problem: Problem) -> list[Task]:
    """The tasks that `fusion.validation` needs, the longest first."""
    machines = problem.configurations.machines
    return [Task(out) for out in sets_left_out(machines)] + [Task(fold=fold) for fold in range(FOLDS)]


def search_weights(problem: Problem, task: Task) -> Found:
    """What every method finds: method → strength → weights (K,)."""
    scores = problem.configurations.without(task.left_out)
    if task.fold is not None:
        scores = scores.clips(problem.folds != task.fold)
    # Sums in another order differ in the last digit, and a search that turns on it would end elsewhere.
    with threadpool_limits(1, "blas"):
        return {
            name: method.search(scores, problem.parts, _generator(problem.seed, task, name))
            for name, method in METHODS.items()
        }


def _generator(seed: int, task: Task, method: str) -> np.random.Generator:
    return np.random.default_rng([seed, crc32(f"{task.name}//{method}".encode())])


def clip_folds(scores: LabelledScores, seed: int) -> NDArray[np.int64]:
    """A fold (rows,) for each clip; every machine's normals of either domain and anomalies are spread evenly."""
    rng = np.random.default_rng(seed)
    folds = np.zeros(scores.values.shape[1], np.int64)
    for stratum in scores.strata():
        folds[rng.permutation(stratum)] = np.arange(len(stratum)) % FOLDS
    return folds


def run_here(problem: Problem, tasks: Iterable[Task]) -> Iterator[tuple[Task, Found]]:
    """The runner for one core, without Ray."""
    for task in tasks:
        yield task, search_weights(problem, task)


def search_all(problem: Problem, runner: Runner) -> dict[Task, Found]:
    """Every task's result."""
    tasks = tasks_of(problem)
    results: dict[Task, Found] = {}
    logged = time.monotonic()
    for task, result in runner(problem, tasks):
        results[task] = result
        if time.monotonic() - logged > PROGRESS_SECONDS:
            logged = time.monotonic()
            log.info("%d of %d searches done", len(results), len(tasks))
    return {task: results[task] for task in tasks}
