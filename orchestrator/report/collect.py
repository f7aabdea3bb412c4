"""What a report tells, read from a run's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.fuse.result import read_result, result_folders
from orchestrator.ledger.folders import FUSED, HELD_OUT, read_finished
from scoring.bootstrap import Intervals, bootstrap_intervals
from scoring.decisions import Thresholds, thresholds
from scoring.errors import InputError
from scoring.ground_truth import GroundTruth, read_ground_truth
from scoring.metrics import has_labels
from scoring.table import read_table

# Machines of the 2026 development set, on which the published figures that systems expect were measured.
DEVELOPMENT_SET = {"bearingEmu", "fan", "gearboxEmu", "sliderEmu", "ToyCar", "ToyCarEmu", "valveEmu"}


@dataclass(frozen=True)
class System:
    """One fused system.

    result: what stands in its `result.json`
    fused: its score table; None if that is lost
    held_out: its labelled clips, each scored with weights chosen without the clip's machine; None if there are none
    intervals, held_out_intervals: of the in-sample metrics, and of those on held-out machines; None without labels
    limits: threshold of each machine and section; None where there are no training clips
    baseline: score table of the baseline on the same data, None if there is none
    revealed: the fused table's rows with ground truth that came later, and its intervals; `result` knows nothing of it
    """

    result: dict[str, Any]
    fused: pa.Table | None = None
    held_out: pa.Table | None = None
    intervals: Intervals | None = None
    held_out_intervals: Intervals | None = None
    limits: Thresholds | None = None
    baseline: pa.Table | None = None
    revealed: System | None = None

    @property
    def name(self) -> str:
        """As its file calls it."""
        return str(self.result["system"])

    @property
    def omega(self) -> float | None:
        """On held-out machines where that is known, else in-sample."""
        omega: float | None = self.result["omega"]
        return omega

    @property
    def expected(self) -> list[tuple[str, float, float | None]]:
        """Configurations whose published Omega the system file states, with that and the mean Omega of their seeds."""
        if set(self.result["machines"]["in_sample"] or {}) != DEVELOPMENT_SET:
            return []
        rows = []
        for subsystem, configurations in self.result.get("spec", {}).get("subsystems", {}).items():
            for name, configuration in configurations.items():
                if (published := configuration.get("expected")) is not None:
                    seeds = {f"{subsystem}/{name}/{seed}" for seed in configuration["seeds"]}
                    omegas = [b["omega"] for b in self.result["branches"] if b["branch"] in seeds]
                    rows.append((f"{subsystem}/{name}", published, float(np.mean(omegas)) if omegas else None))
        return rows


@dataclass(frozen=True)
class Run:
    """All that lies in a run's folder.

    folder: the run folder, as it was given
    notes: what a reader must know: what could not be read, or compared
    """

    name: str
    folder: str
    systems: list[System]
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


def collect(out: Path, ground_truth: Path | None = None) -> Run:
    """The run or fusion in a folder.

    ground_truth: folder of labels that came later

    Raises
    ------
    InputError
        If there is no result, or one is damaged.
    """
    folders = result_folders(out)
    if not folders:
        raise InputError(f"{out}: no results to report; `tutti run` writes them")
    notes: list[str] = []
    truth = None if ground_truth is None else read_ground_truth(ground_truth)
    systems = [_system(out, folder, notes, truth) for folder in folders]
    if len({system.result.get("dataset") for system in systems}) > 1:
        notes.append("The systems in this folder were measured on different data sets: their figures do not compare.")
    return Run(out.resolve().name, str(out), systems, notes)


def _system(out: Path, folder: Path, notes: list[str], truth: GroundTruth | None) -> System:
    result = read_result(folder)
    try:
        fused = read_table(folder / FUSED)
    except InputError as error:
        notes.append(f"{error}. Figures that need this table are left out; fuse the system again to get them.")
        return System(result)
    try:
        limits = thresholds(fused)
    except InputError:  # tables that were made elsewhere may have no training clips
        limits = None
    baseline = None
    if measured := result.get("baseline"):
        try:
            baseline = read_finished(out, measured["table"])
        except InputError as error:
            notes.append(f"{error}. System {result['system']} is not compared with the {measured['name']}.")
    held_out = read_table(folder / HELD_OUT) if (folder / HELD_OUT).exists() else None
    revealed = None
    if truth is not None:
        table = truth.revealed(fused)
        revealed = System(result, table, intervals=bootstrap_intervals(table), limits=limits)
    return System(result, fused, held_out, _intervals(fused), _intervals(held_out), limits, baseline, revealed)


def _intervals(table: pa.Table | None) -> Intervals | None:
    return bootstrap_intervals(table) if table is not None and has_labels(table) else None
