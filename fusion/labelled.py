"""Development scores with their labels: the only thing a weight search ever sees."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fusion.objective import Objective
from fusion.scales import CALIBRATED
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
    scale: that the scores are on, see `fusion.scales`
    """

    names: tuple[str, ...]
    values: NDArray[np.float64]
    cells: LabelledCells
    scale: str = CALIBRATED

    @classmethod
    def of(
        cls, names: Sequence[str], values: NDArray[np.float64], table: pa.Table, scale: str = CALIBRATED
    ) -> LabelledScores:
        """Members' scores (C, rows of `table`) with the labels of `table`.

        Machines without labels, or with normals only or anomalies only, tell nothing and are left out.

        Raises
        ------
        InputError
            If no clip has a label.
        ValueError
            If the labels are ground truth that came later: nothing is chosen by it.
        """
        if is_report_only(table):
            raise ValueError("labels for reports only have reached a search")
        cells = LabelledCells.from_table(table).measurable()
        used, rows = np.unique(cells.rows, return_inverse=True)
        compact = replace(cells, rows=rows.reshape(cells.rows.shape))
        return cls(tuple(names), values[:, used], compact, scale)

    @cached_property
    def objective(self) -> Objective:
        """The objective on these members, machines and clips."""
        return Objective(self.values, self.cells, self.scale)

    @property
    def machines(self) -> list[str]:
        """The development machines, each once."""
        return list(dict.fromkeys(self.cells.machines))

    def only(self, machines: Sequence[str]) -> LabelledScores:
        """The same members on some of the machines."""
        return replace(self, cells=self.cells.select(machines))

    def without(self, machines: Collection[str]) -> LabelledScores:
        """The same members on all machines but these."""
        return self.only([m for m in self.machines if m not in machines]) if machines else self

    def clips(self, keep: NDArray[np.bool_]) -> LabelledScores:
        """The same members on some of the clips (rows,)."""
        kept = keep[self.cells.rows]
        cells = replace(self.cells, positive=self.cells.positive * kept, negative=self.cells.negative * kept)
        return replace(self, cells=cells)

    def part(self, part: slice) -> LabelledScores:
        """Some of the members on the same clips."""
        return replace(self, names=self.names[part], values=self.values[part])

    def with_values(self, values: NDArray[np.float64], names: Sequence[str] | None = None) -> LabelledScores:
        """Other members (C, rows) on the same clips, numbered unless named."""
        return replace(self, names=tuple(names or map(str, range(len(values)))), values=values)

    def strata(self) -> list[NDArray[np.int64]]:
        """Rows of each machine's and section's anomalies, and of its normals by domain."""
        labels = np.stack([self.cells.positive[2], *self.cells.negative]) > 0
        codes = np.einsum("k,kgn->gn", [1, 2, 4, 8], labels)
        return [
            np.unique(rows[codes_of_machine == code])
            for rows, codes_of_machine in zip(self.cells.rows, codes, strict=True)
            for code in np.unique(codes_of_machine[codes_of_machine > 0])
        ]

    def omega(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Omega in per cent of weighted sums; weights (..., C) give (...). It is 0 where no clips can be compared."""
        return np.nan_to_num(harmonic_mean(self.objective.cells(weights), axis=(-2, -1)), nan=0.0)
