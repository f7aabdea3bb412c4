"""The searches of one fusion: every method on all development machines, and again without some of them.

One task is one set of machines that is left out, with all methods on the others. Tasks know nothing of each other: they
may run anywhere, in any order, and what they find depends on the problem alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from zlib import crc32

import numpy as np
from threadpoolctl import threadpool_limits

from fusion.hierarchy import Parts, Weights
from fusion.labelled import LabelledScores
from fusion.methods import METHODS

PROGRESS_SECONDS = 2.0
# Up to so many machines are left out one by one; more are dealt into groups that are left out together, since the
# searches grow with the square of what is left out.
ALONE = 12
GROUPS = 8

log = logging.getLogger(__name__)

Machines = frozenset[str]
# method → strength → weights (K,)
Found = dict[str, dict[str, Weights]]


@dataclass(frozen=True)
class Problem:
    """What every search reads.

    configurations: scores of the K configurations on the labelled clips
    parts: the sub-systems' places among them
    seed: of the searches
    """

    configurations: LabelledScores
    parts: Parts
    seed: int


# Runs `search_weights` without each of these machines, anywhere, and gives each result as it is there.
Runner = Callable[[Problem, Sequence[Machines]], Iterator[tuple[Machines, Found]]]


def groups_of(machines: Sequence[str]) -> list[Machines]:
    """The groups of machines that are left out together: each alone up to `ALONE`, else `GROUPS` groups.

    Machines are dealt by a checksum of their names, so that series such as `fan1`, `fan2` are spread.
    """
    if len(machines) <= ALONE:
        return [frozenset([machine]) for machine in machines]
    dealt = sorted(machines, key=lambda machine: (crc32(machine.encode()), machine))
    return [frozenset(dealt[i::GROUPS]) for i in range(GROUPS)]


def sets_left_out(machines: Sequence[str]) -> list[Machines]:
    """No group of machines, each one and each pair, as far as one remains: the longest searches first."""
    groups = groups_of(machines)
    sets = [out for n in (0, 1, 2) if n < len(groups) for out in combinations(groups, n)]
    return [frozenset[str]().union(*out) for out in sets]


def search_weights(problem: Problem, left_out: Machines) -> Found:
    """What every method finds on the other machines."""
    scores = problem.configurations.without(left_out)
    is_pair = left_out and left_out not in groups_of(problem.configurations.machines)
    # Sums in another order differ in the last digit, and a search that turns on it would end elsewhere.
    with threadpool_limits(1, "blas"):
        return {
            name: ((is_pair and method.brief) or method.search)(
                scores, problem.parts, _generator(problem.seed, left_out, name)
            )
            for name, method in METHODS.items()
        }


def _generator(seed: int, left_out: Machines, method: str) -> np.random.Generator:
    return np.random.default_rng([seed, crc32(f"{'/'.join(sorted(left_out))}//{method}".encode())])


def run_here(problem: Problem, tasks: Iterable[Machines]) -> Iterator[tuple[Machines, Found]]:
    """The runner for one core, without Ray."""
    for left_out in tasks:
        yield left_out, search_weights(problem, left_out)


def search_all(problem: Problem, runner: Runner) -> dict[Machines, Found]:
    """Every task's result, by the machines that are left out."""
    tasks = sets_left_out(problem.configurations.machines)
    found: dict[Machines, Found] = {}
    logged = time.monotonic()
    for left_out, result in runner(problem, tasks):
        found[left_out] = result
        if time.monotonic() - logged > PROGRESS_SECONDS:
            logged = time.monotonic()
            log.info("%d of %d searches done", len(found), len(tasks))
    return found
