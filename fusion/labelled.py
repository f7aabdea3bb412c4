"""Development scores with their labels: the only thing a weight search ever sees."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fusion.omega import Omega
from scoring.metrics import LabelledCells, harmonic_mean
from scoring.table import is_report_only


def labelled_rows(table: pa.Table) -> NDArray[np.int64]:
    """The rows of a table whose labels tell something, in the order of `LabelledScores.values`."""
    return np.unique(LabelledCells.from_table(table).measurable().rows)


@dataclass(frozen=True)
class LabelledScores:
    """Scores of C members on the labelled test clips of the development machines.

    names: the members
    values: (C, rows) scores, of labelled clips alone
    cells: which rows are compared with which, per machine
    """

    names: tuple[str, ...]
    values: NDArray[np.float64]
    cells: LabelledCells

    @classmethod
    def of(cls, names: Sequence[str], values: NDArray[np.float64], table: pa.Table) -> LabelledScores:
        """Members' scores (C, rows of `table`) with the labels of `table`.

        Machines without labels, or with normals only or anomalies only, tell nothing and are left out.

        Raises InputError if no clip has a label, and ValueError if the labels are ground truth that came later:
        nothing is chosen by it.
        """
        if is_report_only(table):
            raise ValueError("labels for reports only have reached a search")
        cells = LabelledCells.from_table(table).measurable()
        used, rows = np.unique(cells.rows, return_inverse=True)
        return cls(tuple(names), values[:, used], replace(cells, rows=rows.reshape(cells.rows.shape)))

    @property
    def machines(self) -> list[str]:
        """The development machines, each once."""
        return list(dict.fromkeys(self.cells.machines))

    def without(self, machines: Collection[str]) -> LabelledScores:
        """The same members on all machines but these."""
        return replace(self, cells=self.cells.select([m for m in self.machines if m not in machines]))

    def part(self, part: slice) -> LabelledScores:
        """Some of the members on the same clips."""
        return replace(self, names=self.names[part], values=self.values[part])

    def with_values(self, values: NDArray[np.float64], names: Sequence[str] | None = None) -> LabelledScores:
        """Other members (C, rows) on the same clips, numbered unless named."""
        return replace(self, names=tuple(names or map(str, range(len(values)))), values=values)

    def measured(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Cells (..., 3, G) in per cent of weighted sums, for weights (..., C); NaN where no clips can be compared."""
        return self._omega.cells(weights)

    def omega(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Omega in per cent of weighted sums; weights (..., C) give (...). It is 0 where no clips can be compared."""
        return np.nan_to_num(harmonic_mean(self.measured(weights), axis=(-2, -1)), nan=0.0)

    @cached_property
    def _omega(self) -> Omega:
        return Omega(self.values, self.cells)
