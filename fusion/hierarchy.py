"""The system's tree: which tables are seeds of one configuration, which configurations form a sub-system.

A weight is chosen per configuration inside its sub-system and per sub-system inside the system; seeds of
one configuration are averaged. All weights are at least 0 and sum to 1, and no machine has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fusion.labelled import LabelledScores
from scoring.errors import InputError

# sub-system → configuration → names of its seeds' tables
Tree = Mapping[str, Mapping[str, Sequence[str]]]
# Scores of C members → weights (C,)
Method = Callable[[LabelledScores, np.random.Generator], NDArray[np.float64]]


def tables_of(tree: Tree) -> list[str]:
    """Names of all tables of the tree, in its order, each once.

    Raises
    ------
    InputError
        If the tree, a sub-system or a configuration is empty.
    """
    names: list[str] = []
    for subsystem, configurations in tree.items():
        for configuration, seeds in configurations.items():
            if not seeds:
                raise InputError(f"configuration {configuration} of sub-system {subsystem} has no seeds")
            names += seeds
    if not names or not all(tree.values()):
        raise InputError("a system needs at least one sub-system, and each sub-system a configuration")
    return list(dict.fromkeys(names))


def choose_weights(scores: LabelledScores, tree: Tree, method: Method, rng: np.random.Generator) -> dict[str, float]:
    """Weight of every table: seeds averaged, `method` inside each sub-system, `method` over sub-systems."""
    inside, fused = [], []
    for configurations in tree.values():
        averaged = [scores.mean_of(seeds) for seeds in configurations.values()]
        weights = method(scores.with_values(averaged), rng)
        inside.append(weights)
        fused.append(weights @ np.stack(averaged))
    over = method(scores.with_values(fused), rng)
    return flatten(tree, over, inside)


def flatten(tree: Tree, over: NDArray[np.float64], inside: Sequence[NDArray[np.float64]]) -> dict[str, float]:
    """Weight of every table from the weights over sub-systems (S,) and inside each of them (C,).

    A table that stands in the tree twice gets the sum of its weights.
    """
    flat = dict.fromkeys(tables_of(tree), 0.0)
    for subsystem, outer, inner in zip(tree.values(), over, inside, strict=True):
        for seeds, weight in zip(subsystem.values(), inner, strict=True):
            for seed in seeds:
                flat[seed] += float(outer * weight / len(seeds))
    return flat


def uniform_weights(tree: Tree) -> dict[str, float]:
    """Equal weights on every level, for which no label is needed."""
    inside = [np.full(len(configurations), 1 / len(configurations)) for configurations in tree.values()]
    return flatten(tree, np.full(len(tree), 1 / len(tree)), inside)


def level_weights(tree: Tree, weights: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Weight of each configuration in the system, by sub-system: what a person wants to read.

    Shared tables are attributed to each place in proportion to how often they stand in the tree.
    """
    places: dict[str, int] = dict.fromkeys(weights, 0)
    for configurations in tree.values():
        for seeds in configurations.values():
            for seed in seeds:
                places[seed] += 1
    return {
        subsystem: {name: sum(weights[s] / places[s] for s in seeds) for name, seeds in configurations.items()}
        for subsystem, configurations in tree.items()
    }
