"""Who contributes what: correlation, winners, what is lost without a member, and how few members do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusion.hierarchy import Weights
from fusion.labelled import LabelledScores
from scoring.metrics import harmonic_mean

# Of many members only so many, the lightest, are tried for removal at once.
TRIED = 64


@dataclass(frozen=True)
class Pruned:
    """A system of few tables.

    weights: of the tables that are left, summing to 1
    in_sample, lomo: Omega in per cent; `lomo` repeats weights and pruning without each machine
    curve: number of tables, in-sample Omega and LOMO Omega of every size that was tried, from many to few
    """

    weights: dict[str, float]
    in_sample: float
    lomo: float | None
    curve: list[tuple[int, float, float | None]]


def correlations(scores: LabelledScores) -> NDArray[np.float64]:
    """Pearson correlation (C, C) of members' scores of labelled clips inside a machine, the mean over machines.

    A member that does not vary on a machine has a correlation of 0 there.
    """
    by_machine = []
    for rows in scores.cells.rows:
        values = scores.values[:, np.unique(rows)]
        centred = values - values.mean(axis=1, keepdims=True)
        length = np.linalg.norm(centred, axis=1, keepdims=True)
        scaled = centred / np.where(length > 0, length, 1)
        by_machine.append(scaled @ scaled.T)
    return np.mean(by_machine, axis=0)


def winners(scores: LabelledScores) -> dict[str, tuple[str, float]]:
    """For each machine the best member alone and its harmonic mean of the machine's cells, in per cent."""
    cells = scores.objective.cells(np.eye(len(scores.values)))
    of_group, best = np.array(scores.cells.machines), {}
    for machine in scores.machines:
        values = harmonic_mean(cells[..., of_group == machine], axis=(-2, -1))
        best[machine] = (scores.names[int(np.argmax(values))], float(values.max()))
    return best


def marginals(scores: LabelledScores, weights: Mapping[str, Weights]) -> list[float | None]:
    """For each member the Omega that is lost when the others have to do without it, with their weights as they are.

    Parameters
    ----------
    weights: (C,) for each machine, chosen without that machine if the loss is to be an honest one

    Returns
    -------
    None for a member without which some machine has no weights left
    """
    of_group = np.array(scores.cells.machines)
    without = 1 - np.eye(len(scores.names))
    cells = np.full((len(without) + 1, 3, len(of_group)), np.nan)
    possible = np.ones(len(without), bool)
    for machine, machine_weights in weights.items():
        left = machine_weights * without
        total = left.sum(axis=1)
        possible &= total > 1e-9
        left[total <= 1e-9] = machine_weights
        group = of_group == machine
        normalised = np.concatenate([left / left.sum(axis=1, keepdims=True), machine_weights[None]])
        cells[..., group] = scores.objective.cells(normalised)[..., group]
    omega = harmonic_mean(cells, axis=(-2, -1))
    return [float(omega[-1] - o) if p else None for o, p in zip(omega[:-1], possible, strict=True)]


def prune(scores: LabelledScores, weights: Weights, by_machine: Mapping[str, Weights], tolerance: float) -> Pruned:
    """The fewest members whose Omega is at most `tolerance` per cent below that of all.

    Members are removed one after another, always the ones whose removal costs least, and the others keep the
    proportions of their weights. LOMO decides where to stop, in-sample Omega where there is none.

    Parameters
    ----------
    scores: C tables
    weights: (C,) in the whole system
    by_machine: (C,) chosen without each machine; empty if there is one machine only
    """
    path = _path(scores, weights)
    held = {
        machine: _path(scores.without([machine]), machine_weights) for machine, machine_weights in by_machine.items()
    }
    curve = [(size, float(scores.omega(w)), _lomo(scores, held, size)) for size, w in path.items()]
    judged = [in_sample if lomo is None else lomo for _, in_sample, lomo in curve]
    last = max(i for i, omega in enumerate(judged) if omega >= judged[0] - tolerance)
    size, in_sample, lomo = curve[last]
    left = {name: float(w) for name, w in zip(scores.names, path[size], strict=True) if w > 0}
    return Pruned(left, in_sample, lomo, curve)


def _path(scores: LabelledScores, weights: Weights) -> dict[int, Weights]:
    """Weights (C,) by number of members that are left, from all of them to one."""
    path = {int((weights > 0).sum()): weights}
    while (size := int((weights > 0).sum())) > 1:
        tried = sorted(np.flatnonzero(weights), key=lambda i: weights[i])[:TRIED]
        without = np.stack([np.where(np.arange(len(weights)) == i, 0, weights) for i in tried])
        omega = scores.omega(without / without.sum(axis=1, keepdims=True))
        cheapest = np.array(tried)[np.argsort(-omega, kind="stable")][: max(1, min(size // 8, TRIED // 2))]
        weights = np.where(np.isin(np.arange(len(weights)), cheapest), 0, weights)
        weights = weights / weights.sum()
        path[int((weights > 0).sum())] = weights
    return path


def _lomo(scores: LabelledScores, paths: Mapping[str, Mapping[int, Weights]], size: int) -> float | None:
    """Omega of each machine with the largest system found without it that has at most `size` members."""
    if not paths:
        return None
    of_group = np.array(scores.cells.machines)
    cells = np.full((3, len(of_group)), np.nan)
    for machine, path in paths.items():
        weights = path[max((n for n in path if n <= size), default=min(path))]
        group = of_group == machine
        cells[:, group] = scores.objective.cells(weights)[:, group]
    return float(harmonic_mean(cells))
