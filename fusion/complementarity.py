"""Who contributes what: correlation, and what is lost without a member."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fusion.hierarchy import Weights
from fusion.labelled import LabelledScores
from scoring.metrics import harmonic_mean


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
        normalised = np.concatenate([left / left.sum(axis=1, keepdims=True), machine_weights[None]])
        alone = scores.without({*scores.machines} - {machine})
        cells[..., of_group == machine] = alone.measured(normalised)
    omega = harmonic_mean(cells, axis=(-2, -1))
    return [float(omega[-1] - o) if p else None for o, p in zip(omega[:-1], possible, strict=True)]
