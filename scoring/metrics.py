"""The challenge's official metrics, for one score vector or for many at once.

Everything here is in per cent, the unit in which the challenge reports; absent cells stay absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scoring.clip_names import is_of_2020
from scoring.errors import InputError
from scoring.table import groups

MAX_FPR = 0.1
CELLS = ("auc_source", "auc_target", "pauc")
SUMMARY = (*CELLS, "hmean")
# What a labelled clip may be: an anomaly, or a normal of the source domain, of the target domain, of any.
ANOMALY, NORMALS = 1, (2, 4, 8)


@dataclass(frozen=True)
class MachineMetrics:
    """One machine's values in per cent; None where the data have no clips for them.

    With several sections each value is the harmonic mean over the sections.
    """

    auc_source: float | None
    auc_target: float | None
    pauc: float | None
    hmean: float | None


@dataclass(frozen=True)
class Metrics:
    """Values of every machine, and omega: the harmonic mean of all cells of all machines and sections."""

    machines: dict[str, MachineMetrics]
    omega: float | None

    def as_dict(self) -> dict[str, Any]:
        """The form in which metrics are printed as JSON and saved."""
        return asdict(self)


@dataclass(frozen=True)
class LabelledCells:
    """Who is compared with whom: clips of G (machine, section) groups, padded to N clips.

    rows: (G, N) indices into the table's rows; padding repeats a valid index and has no weight
    positive: (..., 1, G, N) weights of a clip as anomaly, the same in all cells
    negative: (..., 3, G, N) weights of a clip as normal in each cell of `CELLS`
    machines: the machine of each group
    """

    machines: tuple[str, ...]
    rows: NDArray[np.int64]
    positive: NDArray[np.float64]
    negative: NDArray[np.float64]

    @classmethod
    def from_table(cls, table: pa.Table) -> LabelledCells:
        """Cells of the labelled test rows of `table`.

        AUC of a domain compares its normals with the anomalies of both domains; pAUC uses all clips
        (task description of DCASE 2023–2026 Task 2).
        """
        labelled = _labelled(table)
        if not labelled.any():
            raise InputError("no test clip has a known condition; metrics need labelled clips")
        rows_by_group = [(machine, np.flatnonzero(rows & labelled)) for machine, _, rows in groups(table)]
        machines, members = zip(*((machine, rows) for machine, rows in rows_by_group if len(rows)), strict=True)
        largest = max(map(len, members))
        rows = np.stack([np.pad(rows, (0, largest - len(rows)), "edge") for rows in members])
        real = np.arange(largest) < np.array([[len(rows)] for rows in members])
        anomaly = real & _is(table, "condition", "anomaly")[rows]
        normal = real & ~anomaly
        in_cell = [_is(table, "domain", "source")[rows], _is(table, "domain", "target")[rows], real]
        return cls(
            machines=machines,
            rows=rows,
            positive=anomaly[None].astype(float),
            negative=np.stack([normal & cell for cell in in_cell]).astype(float),
        )

    def values(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Cells in per cent for scores of shape (..., rows of the table): (..., 3, G), NaN where absent."""
        grouped = scores[..., self.rows][..., None, :, :]
        limits = np.array([1.0, 1.0, MAX_FPR])[:, None]
        return 100 * roc_area(grouped, self.positive, self.negative, limits)

    def kinds(self) -> NDArray[np.uint8]:
        """What each clip (G, N) is: `ANOMALY`, or the sum of those of `NORMALS` that hold; 0 for padding."""
        labels = np.concatenate([self.positive, self.negative]) > 0
        return np.einsum("k,kgn->gn", np.array([ANOMALY, *NORMALS], np.uint8), labels)

    def strata(self) -> list[NDArray[np.int64]]:
        """Rows of each group's anomalies, and of its normals by domain."""
        of_groups = zip(self.rows, self.kinds(), strict=True)
        return [np.unique(rows[kinds == kind]) for rows, kinds in of_groups for kind in np.unique(kinds[kinds > 0])]

    def measurable(self) -> LabelledCells:
        """The groups of the machines that have both normals and anomalies to tell apart."""
        both = np.any(self.positive.any(axis=-1) & self.negative.any(axis=-1), axis=0).tolist()
        return self.select([machine for machine, has_both in zip(self.machines, both, strict=True) if has_both])

    def select(self, machines: Sequence[str]) -> LabelledCells:
        """The groups of the given machines only."""
        keep = np.isin(np.array(self.machines), list(machines))
        names = tuple(np.array(self.machines)[keep])
        return LabelledCells(names, self.rows[keep], self.positive[:, keep], self.negative[:, keep])


def roc_area(
    scores: NDArray[np.float64],
    positive: NDArray[np.float64],
    negative: NDArray[np.float64],
    max_fpr: NDArray[np.float64] | float = 1.0,
) -> NDArray[np.float64]:
    """Area under the ROC curve up to `max_fpr`, for many score vectors at once.

    Ties and the interpolation at `max_fpr` are treated as `sklearn.metrics.roc_auc_score` does; below 1
    the area is standardised to 0.5 for chance (McClish 1989, https://doi.org/10.1177/0272989X8900900307).

    Parameters
    ----------
    scores: (..., N), larger = more anomalous
    positive, negative: (..., N) weights ≥ 0 of each clip as anomaly and as normal; 0 leaves it out
    max_fpr: broadcasts against the leading axes

    Returns
    -------
    (...) fractions, NaN where the positives or the negatives weigh nothing
    """
    x, y = roc_curve(scores, positive, negative)
    limit = np.asarray(max_fpr, float)[..., None]
    width, height = np.diff(x), np.diff(y)
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.where(width > 0, np.clip((limit - x[..., :-1]) / width, 0, 1), 0)
    area = np.sum(part * width * (y[..., :-1] + part * height / 2), axis=-1)
    area = np.where(np.isnan(x[..., -1]) | np.isnan(y[..., -1]), np.nan, area)
    limit = limit[..., 0]
    chance = limit**2 / 2
    return np.where(limit < 1, 0.5 * (1 + (area - chance) / (limit - chance)), area)


def roc_curve(
    scores: NDArray[np.float64], positive: NDArray[np.float64], negative: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False and true positive rates (..., N + 1) of ROC curves, see `roc_area`; a tie repeats the point before it."""
    order = np.argsort(-scores, axis=-1)
    ranked = np.take_along_axis(scores, order, axis=-1)
    # A curve has one point per distinct score, at the last clip of a group of ties.
    is_last = np.concatenate([ranked[..., 1:] != ranked[..., :-1], np.ones((*ranked.shape[:-1], 1), bool)], -1)
    return _rate(negative, order, is_last), _rate(positive, order, is_last)


def _rate(weights: NDArray[np.float64], order: NDArray[np.int64], is_last: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Share (..., N + 1) of the weights at the points of a curve so far, from 0 to 1; NaN if they weigh nothing."""
    shape = np.broadcast_shapes(weights.shape, order.shape)
    ranked = np.take_along_axis(np.broadcast_to(weights, shape), np.broadcast_to(order, shape), axis=-1)
    total = np.zeros((*shape[:-1], shape[-1] + 1))
    np.maximum.accumulate(ranked.cumsum(axis=-1) * is_last, axis=-1, out=total[..., 1:])
    with np.errstate(invalid="ignore"):
        return total / total[..., -1:]


def harmonic_mean(values: NDArray[np.float64], axis: int | tuple[int, ...] | None = None) -> NDArray[np.float64]:
    """Harmonic mean over `axis` of the values that are not NaN; NaN where there is none, 0 if one is 0."""
    present = ~np.isnan(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        return present.sum(axis=axis) / np.where(present, 1 / values, 0).sum(axis=axis)


def other_rule(table: pa.Table) -> str | None:
    """What to say of a table whose year was, or may have been, measured otherwise."""
    if any(map(is_of_2020, pc.unique(table["clip"]).to_pylist())):
        return "clips of 2020: these are not that year's figures, which are arithmetic means of AUC and pAUC by id"
    if pc.any(pc.greater(table["section"], 0)).as_py():
        return "if these clips are of 2021: that year's AUC of a domain takes the anomalies of this domain alone"
    return None


def has_labels(table: pa.Table) -> bool:
    """Whether any test row has a known condition."""
    return bool(_labelled(table).any())


def _labelled(table: pa.Table) -> NDArray[np.bool_]:
    return _is(table, "split", "test") & table["condition"].is_valid().to_numpy()


def _is(table: pa.Table, column: str, value: str) -> NDArray[np.bool_]:
    """Which rows (rows,) have the value; null has none."""
    equal: NDArray[np.bool_] = pc.equal(table[column], value).fill_null(False).to_numpy()
    return equal


def official_metrics(table: pa.Table) -> Metrics:
    """Official metrics of the labelled test rows of a score table, in per cent.

    Raises InputError if no test row has a known condition.
    """
    cells = LabelledCells.from_table(table)
    values = cells.values(table["score"].to_numpy())
    return metrics_of_cells(cells.machines, values)


def metrics_of_cells(machines: Sequence[str], values: NDArray[np.float64]) -> Metrics:
    """Metrics from cell values (3, G) in per cent, NaN where absent; group g belongs to `machines[g]`."""
    names, summary = summarised(machines, values)
    per_machine = {name: MachineMetrics(*map(_optional, summary[:, m])) for m, name in enumerate(names)}
    return Metrics(per_machine, _optional(harmonic_mean(values)))


def summarised(machines: Sequence[str], values: NDArray[np.float64]) -> tuple[list[str], NDArray[np.float64]]:
    """The M machines, and the values in `SUMMARY` of each (..., 4, M), from cell values (..., 3, G)."""
    names = list(dict.fromkeys(machines))
    member = np.array(machines) == np.array(names)[:, None]
    of_machine = np.where(member, values[..., None, :], np.nan)
    hmean = harmonic_mean(of_machine, axis=(-3, -1))
    return names, np.concatenate([harmonic_mean(of_machine, axis=-1), hmean[..., None, :]], axis=-2)


def _optional(value: NDArray[np.float64]) -> float | None:
    return None if np.isnan(value) else float(value)
