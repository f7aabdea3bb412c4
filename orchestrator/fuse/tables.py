"""The score tables that are fused, read when they are asked for: a thousand need no more memory than one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from scoring.calibration import recalibrate, transductive_normalisation
from scoring.elsewhere import read_scores
from scoring.errors import InputError
from scoring.table import is_transductive, metadata_of, with_scores

log = logging.getLogger(__name__)

REMEDY = (
    "score the training clips too, or give --transductive-normalisation, which normalises by the test clips and "
    "is against the challenge's rules"
)


@dataclass(frozen=True)
class TableFiles(Mapping[str, pa.Table]):
    """Score tables by name, read from their files each time."""

    paths: Mapping[str, Path]

    def __getitem__(self, name: str) -> pa.Table:
        return read_scores(self.paths[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __contains__(self, name: object) -> bool:
        return name in self.paths  # a mapping's own would read the table


@dataclass(frozen=True)
class Calibrated(TableFiles):
    """Tables from anywhere, on a common scale.

    transductive: normalise every table by its own test clips, see `scoring.calibration.transductive_normalisation`
    """

    transductive: bool = False
    _warned: set[str] = field(default_factory=set, compare=False)

    def __getitem__(self, name: str) -> pa.Table:
        table = super().__getitem__(name)
        if self.transductive:
            return transductive_normalisation(table.filter(pc.equal(table["split"], "test")) if self._tests else table)
        if is_transductive(table):
            return table
        try:
            calibrated, stale = recalibrate(table)
        except InputError as error:
            raise InputError(f"{name}: {error}; {REMEDY}") from None
        if stale and name not in self._warned:
            log.warning("%s: `calibrated` does not follow from `score` on %s: recalibrated", name, ", ".join(stale))
            self._warned.add(name)  # a table is read several times
        return with_scores(table, table["score"].to_numpy(), calibrated, metadata_of(table))

    @cached_property
    def _tests(self) -> bool:
        """Whether test rows alone are fused, since a table (another team's) has no others."""
        return not all(pc.any(pc.equal(read_scores(p)["split"], "train")).as_py() for p in self.paths.values())
