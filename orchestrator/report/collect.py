"""What a report tells, read from a run's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from orchestrator.fuse.result import read_result, result_folders
from orchestrator.ledger.folders import (
    BRANCHES,
    FUSED,
    HELD_OUT,
    Record,
    read_finished,
    read_record,
)
from scoring.bootstrap import Intervals, bootstrap_intervals
from scoring.decisions import Thresholds, thresholds
from scoring.errors import InputError
from scoring.ground_truth import GroundTruth, read_ground_truth
from scoring.metrics import has_labels
from scoring.table import read_table


@dataclass(frozen=True)
class System:
    """One fused system.

    result: what stands in its `result.json`
    fused: its score table; None if that is lost
    held_out: its labelled clips, each scored with weights chosen without the clip's machine; None if there are none
    intervals, held_out_intervals: of the in-sample metrics, and of those on held-out machines; None without labels
    limits: threshold of each machine and section; None where there are no training clips
    revealed: the fused table's rows with ground truth that came later, and its intervals; `result` knows nothing of it
    """

    result: dict[str, Any]
    fused: pa.Table | None = None
    held_out: pa.Table | None = None
    intervals: Intervals | None = None
    held_out_intervals: Intervals | None = None
    limits: Thresholds | None = None
    revealed: System | None = None

    @property
    def name(self) -> str:
        """As its file calls it."""
        return str(self.result["system"])

    @property
    def size(self) -> str:
        """Machines and clips of its table."""
        if self.fused is None:
            return "the table is lost"
        return f"{len(self.fused['machine'].unique())} machines, {self.fused.num_rows} clips"

    @property
    def omega(self) -> float | None:
        """On held-out machines where that is known, else in-sample."""
        omega: float | None = self.result["omega"]
        return omega

    @property
    def configurations(self) -> int:
        """How many there are to choose from."""
        return sum(map(len, self.result["delivered"]["weights"].values()))

    @property
    def branch_ids(self) -> set[str]:
        """The branches whose tables it fuses."""
        return {branch["table"].partition("/")[0] for branch in self.result["branches"]}


@dataclass(frozen=True)
class Run:
    """All that lies in a run's folder.

    folder: the run folder, as it was given
    records: of the finished branches that the systems use, by branch_id
    baselines: tables to compare the systems with
    notes: what could not be read
    """

    name: str
    folder: str
    systems: list[System]
    records: dict[str, Record]
    baselines: dict[str, pa.Table]
    notes: list[str]

    @property
    def tables(self) -> list[dict[str, Any]]:
        """Each branch's score table once, with its metrics: the best first, those without labels last."""
        by_name = {table["table"]: table for system in self.systems for table in system.result["branches"]}
        return sorted(by_name.values(), key=lambda t: (-(t["omega"] or 0.0), t["branch"], t["detector"]))

    @property
    def machines(self) -> list[str]:
        """The machines with labelled clips."""
        measured = [table["machines"] for table in self.tables]
        measured += [system.result["machines"]["in_sample"] or {} for system in self.systems]
        return sorted({machine for machines in measured for machine in machines})


def collect(out: Path, dataset: str | None, ground_truth: Path | None = None) -> Run:
    """The run or fusion in a folder; with a data set's fingerprint, only results on that data.

    ground_truth: folder of labels that came later

    Raises
    ------
    InputError
        If there is no result, or one is damaged.
    """
    results = [(folder, read_result(folder)) for folder in result_folders(out)]
    results = [(folder, result) for folder, result in results if dataset in (None, result.get("dataset"))]
    if not results:
        raise InputError(f"{out}: no results to report; `tutti run` writes them")
    notes: list[str] = []
    truth = None if ground_truth is None else read_ground_truth(ground_truth)
    systems = [_system(folder, result, notes, truth) for folder, result in results]
    records = {}
    for branch_id in sorted(set().union(*(system.branch_ids for system in systems))):
        record = read_record(out / BRANCHES / branch_id)
        if record is not None:
            records[branch_id] = record
    baselines: dict[str, pa.Table] = {}
    if baseline := systems[0].result.get("baseline"):
        baselines[f"the {baseline['name']}"] = read_finished(out, baseline["table"])
    return Run(out.resolve().name, str(out), systems, records, baselines, notes)


def _system(folder: Path, result: dict[str, Any], notes: list[str], truth: GroundTruth | None) -> System:
    try:
        fused = read_table(folder / FUSED)
    except InputError as error:
        notes.append(f"{error}. Figures that need this table are left out; fuse the system again to get them.")
        return System(result)
    try:
        limits = thresholds(fused)
    except InputError:  # tables that were made elsewhere may have no training clips
        limits = None
    held_out = read_table(folder / HELD_OUT) if (folder / HELD_OUT).exists() else None
    intervals, held_out_intervals = (
        bootstrap_intervals(table) if table is not None and has_labels(table) else None for table in (fused, held_out)
    )
    revealed = None
    if truth is not None:
        table = truth.revealed(fused)
        revealed = System(result, table, intervals=bootstrap_intervals(table), limits=limits)
    return System(result, fused, held_out, intervals, held_out_intervals, limits, revealed)
