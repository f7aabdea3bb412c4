"""Omega, which every search maximises: the official metrics of many weight vectors at once.

`LabelledCells.values` counts ties and weights in full generality. Weighted sums of real scores have no ties, and
then one sort per machine and integer counts give the same numbers at a fraction of the cost.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scoring.metrics import ANOMALY, MAX_FPR, NORMALS, LabelledCells

# Scores that are sorted at once: what stays in a core's cache is several times as fast as what does not.
BLOCK = 20_000
# Scores that are summed at once: many weight vectors share one pass over the members' scores.
SUMMED = 1_000_000


class Omega:
    """Cells in per cent of weighted sums of C members, on G (machine, section) groups of at most N clips.

    Parameters
    ----------
    values: (C, rows) scores of the members
    cells: who is compared with whom; a clip counts wholly or not at all
    """

    def __init__(self, values: NDArray[np.float64], cells: LabelledCells) -> None:
        self._values, self._cells, self._kinds = values, cells, cells.kinds()
        self._counts = np.stack([(self._kinds & kind > 0).sum(axis=-1, dtype=float) for kind in (ANOMALY, *NORMALS)])
        self._first_of_group = np.arange(len(self._kinds))[:, None] * self._kinds.shape[1]
        self._members = np.ascontiguousarray(values[:, cells.rows]).reshape(len(values), -1)

    def cells(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Cells (..., 3, G) for weights (..., C), NaN where absent."""
        flat = weights.reshape(-1, weights.shape[-1])
        result = np.empty((len(flat), 3, len(self._kinds)))
        for some in _blocks(len(flat), SUMMED // self._kinds.size):
            scores = (flat[some] @ self._members).reshape(-1, *self._kinds.shape)
            for few in _blocks(len(scores), BLOCK // self._kinds.size):
                result[some][few] = self._block(flat[some][few], scores[few])
        return result.reshape(*weights.shape[:-1], *result.shape[1:])

    def _block(self, weights: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Cells (B, 3, G) of grouped scores (B, G, N), which are used up."""
        scores[:, self._kinds == 0] = np.inf  # clips without a label stand above all others and count for nothing
        order = scores.argsort(axis=-1)
        result = self._counted(self._kinds.ravel()[order + self._first_of_group])
        scores.sort(axis=-1)
        tied = ((scores[..., 1:] == scores[..., :-1]) & (scores[..., 1:] < np.inf)).any(axis=(1, 2))
        if tied.any():
            result[tied] = self._cells.values(weights[tied] @ self._values)
        return result

    def _counted(self, kinds: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Cells from the clips' kinds in ascending order of score (B, G, N): anomalies above each normal count."""
        positive, source, target, negative = self._counts
        is_source, is_target, is_normal = ((kinds & kind > 0).astype(float) for kind in NORMALS)
        above = positive[:, None] - (kinds & ANOMALY).cumsum(axis=-1, dtype=float)
        from_top = negative[:, None] - is_normal.cumsum(axis=-1)
        in_part = is_normal * np.clip(MAX_FPR * negative[:, None] - from_top, 0, 1)
        sums = [np.einsum("bgn,bgn->bg", above, share) for share in (is_source, is_target, in_part)]
        with np.errstate(divide="ignore", invalid="ignore"):
            auc_source, auc_target, area = np.stack(sums) / (positive * np.stack([source, target, negative]))[:, None]
        # McClish's standardisation of the area up to MAX_FPR, see scoring.metrics.roc_area.
        chance = MAX_FPR**2 / 2
        pauc = 0.5 * (1 + (area - chance) / (MAX_FPR - chance))
        return 100 * np.stack([auc_source, auc_target, pauc], axis=1)


def _blocks(n: int, size: int) -> list[slice]:
    return [slice(start, start + max(1, size)) for start in range(0, n, max(1, size))]
