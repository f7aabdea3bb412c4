"""What a report tells, read from a run's folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fusion.labelled import labelled_rows
from orchestrator.fuse.result import read_result, result_folders
from orchestrator.ledger.folders import FUSED, HELD_OUT, read_finished
from scoring.bootstrap import Intervals, bootstrap_intervals
from scoring.errors import InputError
from scoring.metrics import has_labels
from scoring.table import read_table

# Machines of the 2026 development set, on which the published figures that systems expect were measured.
DEVELOPMENT_SET = {"bearingEmu", "fan", "gearboxEmu", "sliderEmu", "ToyCar", "ToyCarEmu", "valveEmu"}


@dataclass(frozen=True)
class System:
    """A fused system: what stands in its `result.json`, and score tables.

    held_out: labelled clips, each scored with weights that no label of its machine has chosen; None if there are none
    intervals: of the metrics on these
    baseline: all clips of the baseline on the same data; None if there is none
    """

    result: dict[str, Any]
    fused: pa.Table
    held_out: pa.Table | None
    intervals: Intervals | None = None
    baseline: pa.Table | None = None

    @property
    def machines(self) -> dict[str, dict[str, float | None]]:
        """Figures of each labelled machine, on which the system's own figure rests."""
        machines = self.result["machines"]
        return machines["lomo"] or machines["in_sample"] or {}


def collect(out: Path) -> tuple[list[System], list[str]]:
    """The systems of the run or fusion in a folder, and what a reader must know: what could not be read, or compared.

    Raises InputError if there is no result, or one is damaged or lacks its tables.
    """
    folders = result_folders(out)
    if not folders:
        raise InputError(f"{out}: no results to report; `tutti run` writes them")
    notes: list[str] = []
    systems = [_system(out, folder, notes) for folder in folders]
    if len({system.result.get("dataset") for system in systems}) > 1:
        notes.append("The systems in this folder were measured on different data sets: their figures do not compare.")
    return systems, notes


def _system(out: Path, folder: Path, notes: list[str]) -> System:
    result = read_result(folder)
    try:
        fused = read_table(folder / FUSED)
        # With fewer than two labelled machines weights are uniform, and no label has chosen any.
        held_out = read_table(folder / HELD_OUT) if result["machines"]["lomo"] else labelled(fused)
    except InputError as error:
        raise InputError(f"{error}; remove {folder} and run the same command again") from None
    baseline = None
    if measured := result.get("baseline"):
        try:
            baseline = read_finished(out, measured["table"])
        except InputError as error:
            notes.append(f"{error}. System {result['system']} is not compared with the {measured['name']}.")
    intervals = None if held_out is None else bootstrap_intervals(held_out)
    if intervals is not None and result["delivered"]["ci"]:  # the same but for chance: one figure stands everywhere
        intervals = replace(intervals, omega=tuple(result["delivered"]["ci"]))
    return System(result, fused, held_out, intervals, baseline)


def labelled(table: pa.Table) -> pa.Table | None:
    """The labelled clips of machines that have both normal ones and anomalies; None if there are none."""
    rows = labelled_rows(table) if has_labels(table) else ()
    return table.take(rows) if len(rows) else None


def published(result: dict[str, Any]) -> list[tuple[str, float, float | None]]:
    """Configurations whose published Omega the system file states, with that and the mean Omega of their seeds."""
    if set(result["machines"]["in_sample"] or {}) != DEVELOPMENT_SET:
        return []
    rows, measured = [], {branch["branch"]: branch["omega"] for branch in result["branches"]}
    for subsystem, configurations in result.get("spec", {}).get("subsystems", {}).items():
        for name, configuration in configurations.items():
            if (expected := configuration.get("expected")) is not None:
                seeds = [f"{subsystem}/{name}/{seed}" for seed in configuration["seeds"]]
                omegas = [measured[seed] for seed in seeds if seed in measured]
                rows.append((f"{subsystem}/{name}", expected, float(np.mean(omegas)) if omegas else None))
    return rows
