"""Score tables in and out of a fusion: joined by key on the way in, one weighted sum on the way out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fusion.scales import CALIBRATED, MINIMUM, from_scale, on_scale
from scoring.calibration import calibrate, transductive_normalisation
from scoring.errors import InputError
from scoring.table import conform, groups, is_transductive, join, with_scores


@dataclass(frozen=True)
class Joined:
    """Several tables' calibrated scores on the same clips.

    names: of the T tables
    first: the first of them, with what is known of each clip
    clips: keys and domains without any label, and the transductive mark if one of the tables has it
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

        Parameters
        ----------
        agreeing: columns that must be the same in all tables

        Raises
        ------
        InputError
            If a table is not there, lacks a clip or a machine that another has, is not calibrated, or says something
            else of a clip than another.
        """
        names = tuple(names)
        absent = [name for name in names if name not in tables]
        if absent:
            raise InputError(
                f"no score table for {', '.join(absent)}; train these branches or leave them out of the system"
            )
        first = conform(tables[names[0]], names[0])
        clips, values = None, np.empty((len(names), first.num_rows))
        for i, name in enumerate(names):
            table = first if i == 0 else conform(tables[name], name)
            keys, pair = join({names[0]: first, name: table})
            values[i] = pair[-1]
            clips = keys if clips is None or is_transductive(keys) else clips
            for column in agreeing:
                _check_same(column, names[0], first, name, table)
        _check_training_clips(clips)
        return cls(names, first, clips, values)

    def fused(self, weights: NDArray[np.float64], scale: str, metadata: Mapping[str, str]) -> pa.Table:
        """The weighted sum, weights (T,), as a score table, calibrated anew on its own training rows."""
        score = weighted_sum(self.clips, self.values, weights, scale)
        first = self.first.replace_schema_metadata(self.clips.schema.metadata)
        if is_transductive(self.clips):
            return conform(transductive_normalisation(with_scores(first, score, None, metadata)))
        return conform(with_scores(first, score, calibrate(self.clips, score), metadata))


def weighted_sum(
    clips: pa.Table, values: NDArray[np.float64], weights: NDArray[np.float64], scale: str
) -> NDArray[np.float64]:
    """Fused scores (rows,) from the calibrated scores (T, rows) of T tables and their weights (T,).

    clips: machine, section and split of each row, which ranks are taken within; see `fusion.scales`
    """
    score = np.full(values.shape[1], np.inf if scale == MINIMUM else 0.0)
    for weight, row in zip(weights, values, strict=True):
        if weight > 0:
            on = on_scale(scale, clips, row)
            score = np.minimum(score, on) if scale == MINIMUM else score + weight * on
    return from_scale(scale, score)


def _check_training_clips(clips: pa.Table) -> None:
    """Refuse at once what could not be calibrated at the end."""
    train = clips["split"].to_numpy() == "train"
    for machine, section, rows in groups(clips):
        if not is_transductive(clips) and (count := int((rows & train).sum())) < 2:
            raise InputError(f"machine {machine} section {section} has {count} training clips to calibrate on, not 2")


def _check_same(column: str, first_name: str, first: pa.Table, name: str, table: pa.Table) -> None:
    if not table[column].equals(first[column]):
        clips = zip(first["clip"].to_pylist(), first[column].to_pylist(), table[column].to_pylist(), strict=True)
        clip, here, there = next(row for row in clips if row[1] != row[2])
        raise InputError(f"the {column} of {clip} is {here} in {first_name} and {there} in {name}")


def apply_weights(
    tables: Mapping[str, pa.Table],
    weights: Mapping[str, float],
    metadata: Mapping[str, str] | None = None,
    scale: str = CALIBRATED,
) -> pa.Table:
    """The fused score table of any data set, with weights chosen on another; no label is read.

    Parameters
    ----------
    tables: score tables by name; only those with a weight are looked at
    weights: by table name, see `Fusion.weights`
    metadata: written into the fused table's schema
    scale: of the scores that the weights were chosen for, see `fusion.scales`

    Raises
    ------
    InputError
        If a table with a weight is absent, or the tables do not have the same clips.
    """
    used = {name: weight for name, weight in weights.items() if weight > 0}
    return Joined.read(tables, used).fused(np.array(list(used.values())), scale, metadata or {})
