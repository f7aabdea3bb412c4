"""The system's tree: which tables are seeds of one configuration, which configurations form a sub-system.

Seeds of one configuration are averaged. A weight is chosen per configuration inside its sub-system and per
sub-system inside the system; a configuration's weight in the system is the product. All weights are at
least 0 and sum to 1, and no machine has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fusion.labelled import LabelledScores
from scoring.errors import InputError

# sub-system → configuration → names of its seeds' tables
Tree = Mapping[str, Mapping[str, Sequence[str]]]
Weights = NDArray[np.float64]
# Scores of C members of one level → weights (C,)
Level = Callable[[LabelledScores, np.random.Generator], Weights]
# Where the configurations of each sub-system stand among all K
Parts = Sequence[slice]


def tables_of(tree: Tree) -> list[str]:
    """Names of all tables of the tree, in its order, each once.

    Raises InputError if the tree, a sub-system or a configuration is empty.
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


def parts_of(tree: Tree) -> list[slice]:
    """The place of each sub-system's configurations among those of the whole tree."""
    ends = np.cumsum([len(configurations) for configurations in tree.values()])
    return [slice(int(end) - len(c), int(end)) for end, c in zip(ends, tree.values(), strict=True)]


def configuration_names(tree: Tree) -> list[str]:
    """`sub-system/configuration` of all K configurations."""
    return [f"{subsystem}/{name}" for subsystem, configurations in tree.items() for name in configurations]


def averaging(tree: Tree, names: Sequence[str]) -> NDArray[np.float64]:
    """(K, tables): the share of each named table in each configuration, equal for its seeds."""
    column = {name: i for i, name in enumerate(names)}
    configurations = [seeds for c in tree.values() for seeds in c.values()]
    matrix = np.zeros((len(configurations), len(names)))
    for row, seeds in zip(matrix, configurations, strict=True):
        np.add.at(row, [column[seed] for seed in seeds], 1 / len(seeds))
    return matrix


def configurations_of(scores: LabelledScores, tree: Tree) -> LabelledScores:
    """The tree's K configurations as members: the mean of each one's seeds."""
    return scores.with_values(averaging(tree, scores.names) @ scores.values, configuration_names(tree))


def choose_weights(scores: LabelledScores, parts: Parts, rng: np.random.Generator, level: Level) -> Weights:
    """Weights (K,) of configurations: `level` inside each sub-system, then `level` over the sub-systems."""
    inside = [level(scores.part(part), rng) for part in parts]
    fused = np.stack([weights @ scores.values[part] for weights, part in zip(inside, parts, strict=True)])
    return product(level(scores.with_values(fused), rng), inside)


def product(over: Weights, inside: Sequence[Weights]) -> Weights:
    """Weights (K,) in the system from those over sub-systems (S,) and inside each of them."""
    return np.concatenate([outer * inner for outer, inner in zip(over, inside, strict=True)])


def factors(weights: Weights, parts: Parts) -> tuple[Weights, list[Weights]]:
    """The inverse of `product`; inside a sub-system without weight all configurations are equal."""
    over = np.array([weights[part].sum() for part in parts])
    equal = [np.full(part.stop - part.start, 1 / (part.stop - part.start)) for part in parts]
    inside = [weights[p] / o if o > 0 else e for p, o, e in zip(parts, over, equal, strict=True)]
    return over, inside


def uniform_weights(parts: Parts) -> Weights:
    """Equal weights on every level, for which no label is needed."""
    over, inside = factors(np.zeros(parts[-1].stop), parts)
    return product(np.full(len(over), 1 / len(over)), inside)


def by_subsystem(tree: Tree, weights: Weights) -> dict[str, dict[str, float]]:
    """Weight of each configuration in the system, by sub-system: what a person wants to read."""
    values = iter(weights.tolist())
    return {subsystem: {name: next(values) for name in configurations} for subsystem, configurations in tree.items()}
