"""Weights as points of the unit cube, where searches that know only boxes can move.

A coordinate above `OPEN` closes its member's gate: the weight is 0. Below, the weight is ∝ −log(u / OPEN). With u
uniform each gate is open with probability `OPEN`, independently, and the weights of the open members are uniform
on their simplex, Dirichlet(1): −log of a uniform variable is exponential. Normalised uniforms would not be.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

OPEN = 0.75


def to_weights(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights (..., C) of points (..., C) in the unit cube; where every gate is closed, equal ones."""
    raw = np.maximum(0, -np.log(np.maximum(points, 1e-12) / OPEN))
    total = raw.sum(axis=-1, keepdims=True)
    return np.where(total > 0, raw / np.where(total > 0, total, 1), 1 / points.shape[-1])


def to_point(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """A point (C,) of the cube with these weights (C,)."""
    return np.where(weights > 0, OPEN * np.exp(-len(weights) * weights), (1 + OPEN) / 2)
