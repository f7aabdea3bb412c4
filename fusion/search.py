"""Fuse score tables: choose weights, estimate honestly what they are worth, apply them.

Every method is run on all development machines, and once more without each of them; what it then reaches on
the machine left out (LOMO) is what may be expected of a machine nobody has heard. The method with the best
LOMO Omega is delivered, and the in-sample figure only ever stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Choice:
    """One method's weights with what they reach, in per cent."""

    weights: dict[str, float]
    in_sample: Metrics | None
    lomo: Metrics | None


@dataclass(frozen=True)
class Fusion:
    """A fused system.

    delivered: name of the method whose weights are applied
    why: a sentence for the report
    methods: every method that was tried
    configuration_weights: weight of each configuration, by sub-system
    table: the fused score table
    """

    delivered: str
    why: str
    methods: dict[str, Choice]
    configuration_weights: dict[str, dict[str, float]]
    table: pa.Table

    @property
    def choice(self) -> Choice:
        """The delivered method's weights and figures."""
        return self.methods[self.delivered]


@dataclass(frozen=True)
class Task:
    """One search: a method on all development machines, or on all but one."""

    method: str
    left_out: str | None
    seed: int


# Runs `search_weights(scores, tree, task)` for each task, anywhere and in any order of execution.
Runner = Callable[[LabelledScores, Tree, Iterable[Task]], list[dict[str, float]]]


def search_weights(scores: LabelledScores, tree: Tree, task: Task) -> dict[str, float]:
    """Weights of every table by one method; they depend on the arguments alone."""
    seen = scores if task.left_out is None else scores.without(task.left_out)
    key = crc32(f"{task.method}/{task.left_out}".encode())
    return choose_weights(seen, tree, METHODS[task.method], np.random.default_rng([task.seed, key]))


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
    if has_labels(own[names[0]]):
        methods = _try_methods(LabelledScores.from_tables(own), system, seed, runner)
    else:
        methods = {"uniform": Choice(uniform_weights(system), None, None)}
    delivered, why = _deliver(methods)
    weights = methods[delivered].weights
    return Fusion(delivered, why, methods, level_weights(system, weights), apply_weights(own, weights, metadata or {}))


def _try_methods(scores: LabelledScores, tree: Tree, seed: int, runner: Runner) -> dict[str, Choice]:
    left_out = scores.machines if len(scores.machines) > 1 else []
    tasks = [Task(method, machine, seed) for method in METHODS for machine in (None, *left_out)]
    found = dict(zip(tasks, runner(scores, tree, tasks), strict=True))
    choices = {}
    for method in METHODS:
        weights = found[Task(method, None, seed)]
        held = [scores.only([m]).fused_cells(found[Task(method, m, seed)]) for m in left_out]
        choices[method] = Choice(
            weights,
            metrics_of_cells(scores.cells.machines, scores.fused_cells(weights)),
            metrics_of_cells(scores.cells.machines, np.concatenate(held, axis=1)) if held else None,
        )
    return choices


def _deliver(methods: Mapping[str, Choice]) -> tuple[str, str]:
    """The method with the best LOMO Omega; the first, simplest one of equals or where there is no LOMO."""
    estimates = {name: choice.lomo.omega for name, choice in methods.items() if choice.lomo}
    if not estimates:
        return "uniform", "fewer than two labelled machines: no choice can be tested on an unheard one"
    best = max(estimates, key=lambda name: estimates[name] or 0.0)
    return best, "the highest Omega on machines left out of the choice"


def apply_weights(
    tables: Mapping[str, pa.Table], weights: Mapping[str, float], metadata: Mapping[str, str]
) -> pa.Table:
    """The weighted sum of calibrated scores as a score table, calibrated anew on its own training rows."""
    keys, values = join(tables)
    score = np.array([weights[name] for name in tables]) @ values
    first = next(iter(tables.values()))
    return conform(with_scores(first, score, calibrate(keys, score), metadata))
