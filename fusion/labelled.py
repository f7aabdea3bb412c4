"""Development scores with their labels: the only thing a weight search ever sees."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scoring.metrics import LabelledCells, harmonic_mean
from scoring.table import join


@dataclass(frozen=True)
class LabelledScores:
    """Calibrated scores of C members on the labelled test clips of the development machines.

    names: the members
    values: (C, rows) calibrated scores
    cells: which rows are compared with which, per machine
    """

    names: tuple[str, ...]
    values: NDArray[np.float64]
    cells: LabelledCells

    @classmethod
    def from_tables(cls, tables: Mapping[str, pa.Table]) -> LabelledScores:
        """Join development tables (from `read_table`) by key.

        Machines without labels, or with normals only or anomalies only, tell nothing and are left out.

        Raises
        ------
        InputError
            If the tables do not have the same clips, or none has a label.
        """
        _, values = join(tables)
        return cls(tuple(tables), values, LabelledCells.from_table(next(iter(tables.values()))).measurable())

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

    def mean_of(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Mean score (rows,) of some members."""
        return self.values[[self.names.index(name) for name in names]].mean(axis=0)

    def with_values(self, values: Sequence[NDArray[np.float64]]) -> LabelledScores:
        """Other, unnamed members on the same clips: `values` holds one (rows,) per member."""
        return replace(self, names=tuple(map(str, range(len(values)))), values=np.stack(values))

    def omega(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Omega in per cent of weighted sums; weights (..., C) give (...)."""
        return harmonic_mean(self.cells.values(weights @ self.values), axis=(-2, -1))

    def fused_cells(self, weights: Mapping[str, float]) -> NDArray[np.float64]:
        """Cells (3, G) in per cent of the weighted sum of the named members."""
        vector = np.array([weights[name] for name in self.names])
        return self.cells.values(vector @ self.values)
