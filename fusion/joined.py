"""Score tables in and out of a fusion: joined by key on the way in, one weighted sum on the way out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fusion.scales import Scale, on_scale
from scoring.calibration import calibrate, transductive_normalisation
from scoring.table import conform, is_transductive, join, with_scores


@dataclass(frozen=True)
class Joined:
    """Several tables' calibrated scores on the same clips.

    names: of the T tables
    first: the first of them, with what is known of each clip, and the marks that one of the tables has
    clips: keys and domains without any label, with the same mark
    values: (T, rows) calibrated scores
    """

    names: tuple[str, ...]
    first: pa.Table
    clips: pa.Table
    values: NDArray[np.float64]

    @classmethod
    def read(
        cls, tables: Mapping[str, pa.Table], names: Iterable[str], agreeing: Sequence[str] = ("domain",)
    ) -> Joined:
        """Join the named tables by key. One is held at a time, if `tables` reads each when it is asked for.

        agreeing: columns that must be the same in all tables

        Raises InputError if a table is not there, lacks a clip or a machine that another has, is not calibrated, or
        says something else of a clip than another.
        """
        names = tuple(names)
        clips, values = join(tables, names, agreeing=agreeing)
        first = conform(tables[names[0]], names[0]).replace_schema_metadata(clips.schema.metadata)
        if not is_transductive(clips):
            calibrate(clips, values.mean(axis=0))  # refuse at once what could not be calibrated at the end
        return cls(names, first, clips, values)

    def fused(self, weights: NDArray[np.float64], scale: Scale, metadata: Mapping[str, str]) -> pa.Table:
        """The weighted sum, weights (T,), as a score table, calibrated anew on its own training rows."""
        score = weights @ on_scale(scale, self.clips, self.values)
        if is_transductive(self.clips):
            return conform(transductive_normalisation(with_scores(self.first, score, None, metadata)))
        return conform(with_scores(self.first, score, calibrate(self.clips, score), metadata))


def apply_weights(
    tables: Mapping[str, pa.Table],
    weights: Mapping[str, float],
    metadata: Mapping[str, str] | None = None,
    scale: Scale = "calibrated",
) -> pa.Table:
    """The fused score table of any data set, with weights chosen on another; no label is read.

    Parameters
    ----------
    tables: score tables by name; only those with a weight are looked at
    weights: by table name, see `Fusion.weights`
    metadata: written into the fused table's schema
    scale: of the scores that the weights were chosen for

    Raises InputError if a table with a weight is absent, or the tables do not have the same clips.
    """
    used = {name: weight for name, weight in weights.items() if weight > 0}
    return Joined.read(tables, used).fused(np.array(list(used.values())), scale, metadata or {})
