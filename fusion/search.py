"""Fuse score tables: choose weights, estimate honestly what they are worth, apply them.

Every method is run on all development machines, and again without each of them; what it then reaches on the
machine left out (LOMO) is the honest estimate, and the method with the best one is delivered. Choosing the best of
several estimates flatters it, so the choice itself is repeated too: for each machine the method is chosen by LOMO
among the others. That nested figure is what may be expected of a machine nobody has heard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from zlib import crc32

import numpy as np
import pyarrow as pa

from fusion.hierarchy import Tree, choose_weights, level_weights, tables_of, uniform_weights
from fusion.labelled import LabelledScores
from fusion.methods import METHODS
from scoring.calibration import calibrate
from scoring.errors import InputError
from scoring.metrics import Metrics, has_labels, metrics_of_cells
from scoring.table import conform, join, with_scores

UNIFORM = "uniform"
WHY_BEST = "the highest Omega on machines left out of the choice"
WHY_UNIFORM = "fewer than two labelled machines: no choice can be tested on an unheard one"


@dataclass(frozen=True)
class Choice:
    """One method's weights with what they reach: on the labels they were chosen on, and on machines left out."""

    weights: dict[str, float]
    in_sample: Metrics | None
    lomo: Metrics | None


@dataclass(frozen=True)
class Fusion:
    """A fused system.

    delivered: name of the method whose weights are applied
    why: the reason, for the report
    lomo: what the choice of method and weights together reaches on machines that had no say in either
    methods: every method that was tried
    configuration_weights: weight of each configuration, by sub-system
    table: the fused score table
    """

    delivered: str
    why: str
    lomo: Metrics | None
    methods: dict[str, Choice]
    configuration_weights: dict[str, dict[str, float]]
    table: pa.Table

    @property
    def choice(self) -> Choice:
        """The delivered method's weights and figures."""
        return self.methods[self.delivered]


@dataclass(frozen=True)
class Task:
    """One search: a method on the development machines without some of them."""

    method: str
    left_out: frozenset[str]
    seed: int


# Runs `search_weights(scores, tree, task)` for each task, anywhere and in any order of execution.
Runner = Callable[[LabelledScores, Tree, Iterable[Task]], list[dict[str, float]]]


def search_weights(scores: LabelledScores, tree: Tree, task: Task) -> dict[str, float]:
    """Weights of every table by one method; they depend on the arguments alone."""
    key = crc32("/".join([task.method, *sorted(task.left_out)]).encode())
    rng = np.random.default_rng([task.seed, key])
    return choose_weights(scores.without(task.left_out), tree, METHODS[task.method], rng)


def run_here(scores: LabelledScores, tree: Tree, tasks: Iterable[Task]) -> list[dict[str, float]]:
    """The runner for one core, without Ray."""
    return [search_weights(scores, tree, task) for task in tasks]


def fuse(
    tables: Mapping[str, pa.Table],
    system: Tree,
    metadata: Mapping[str, str] | None = None,
    seed: int = 0,
    runner: Runner = run_here,
) -> Fusion:
    """Fuse the tables of a system.

    Parameters
    ----------
    tables: score tables by name; all must have the same clips, and calibrated scores
    system: sub-system → configuration → table names of its seeds
    metadata: written into the fused table's schema
    seed: of the searches; the result does not depend on the runner
    runner: where the searches run

    Raises
    ------
    InputError
        If a table of the system is absent or the tables do not have the same clips.
    """
    names = tables_of(system)
    absent = [name for name in names if name not in tables]
    if absent:
        raise InputError(
            f"no score table for {', '.join(absent)}; train these branches or leave them out of the system"
        )
    own = {name: conform(tables[name], name) for name in names}
    scores = LabelledScores.from_tables(own) if has_labels(own[names[0]]) else None
    if scores is not None and scores.machines:
        found = _search_all(scores, system, seed, runner)
        methods, delivered, lomo = (
            _choices(scores, found),
            _best(scores, found, frozenset()),
            _nested_lomo(scores, found),
        )
    else:
        methods, delivered, lomo = {UNIFORM: Choice(uniform_weights(system), None, None)}, UNIFORM, None
    weights = methods[delivered].weights
    return Fusion(
        delivered=delivered,
        why=WHY_UNIFORM if lomo is None else WHY_BEST,
        lomo=lomo,
        methods=methods,
        configuration_weights=level_weights(system, weights),
        table=apply_weights(own, weights, metadata or {}),
    )


Found = Mapping[tuple[str, frozenset[str]], Mapping[str, float]]


def _search_all(scores: LabelledScores, tree: Tree, seed: int, runner: Runner) -> Found:
    """Weights of every method without no machine, any one and any two: by (method, machines left out)."""
    machines = scores.machines
    sets = [frozenset(out) for n in (0, 1, 2) if n < len(machines) for out in combinations(machines, n)]
    tasks = [Task(method, left_out, seed) for left_out in sets for method in METHODS]
    weights = runner(scores, tree, tasks)
    return {(task.method, task.left_out): w for task, w in zip(tasks, weights, strict=True)}


def _lomo(scores: LabelledScores, found: Found, method: str, without: frozenset[str]) -> Metrics | None:
    """What a method reaches on each machine with the weights it chose without that one and those in `without`."""
    machines = [machine for machine in scores.machines if machine not in without]
    if len(machines) < 2:
        return None
    held = [scores.only([m]).fused_cells(found[method, without | {m}]) for m in machines]
    return metrics_of_cells(scores.without(without).cells.machines, np.concatenate(held, axis=1))


def _best(scores: LabelledScores, found: Found, without: frozenset[str]) -> str:
    """The method with the best LOMO Omega; the first, simplest one of equals or where there is no LOMO."""

    def estimate(method: str) -> float:
        lomo = _lomo(scores, found, method, without)
        return lomo.omega or 0.0 if lomo else 0.0

    return max(METHODS, key=estimate)


def _nested_lomo(scores: LabelledScores, found: Found) -> Metrics | None:
    """What the whole procedure reaches on each machine when method and weights are chosen without it."""
    if len(scores.machines) < 2:
        return None
    held = []
    for machine in scores.machines:
        alone = frozenset([machine])
        held.append(scores.only([machine]).fused_cells(found[_best(scores, found, alone), alone]))
    return metrics_of_cells(scores.cells.machines, np.concatenate(held, axis=1))


def _choices(scores: LabelledScores, found: Found) -> dict[str, Choice]:
    machines = scores.cells.machines
    choices = {}
    for method in METHODS:
        weights = dict(found[method, frozenset()])
        in_sample = metrics_of_cells(machines, scores.fused_cells(weights))
        choices[method] = Choice(weights, in_sample, _lomo(scores, found, method, frozenset()))
    return choices


def apply_weights(
    tables: Mapping[str, pa.Table], weights: Mapping[str, float], metadata: Mapping[str, str]
) -> pa.Table:
    """The weighted sum of calibrated scores as a score table, calibrated anew on its own training rows."""
    keys, values = join(tables)
    score = np.array([weights[name] for name in tables]) @ values
    first = next(iter(tables.values()))
    return conform(with_scores(first, score, calibrate(keys, score), metadata))
