"""What a system without labels tells an engineer: how often it would alarm, and which recordings stand out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from branches.audio.formats import read_formats
from branches.data.importing import original_names
from orchestrator.report.collect import System
from orchestrator.report.figures import sections
from scoring.decisions import thresholds
from scoring.errors import InputError
from scoring.table import rows_of

DAY = 86_400  # seconds


@dataclass(frozen=True)
class MachineSummary:
    """A machine, with its section if there are several.

    normals: number of training clips
    threshold: of the decisions, on the system's score
    share: of the training clips, by their cross-fitted scores, above it
    seconds: shortest and longest of them; None if unknown
    """

    name: str
    normals: int
    threshold: float
    share: float
    seconds: tuple[float, float] | None

    @property
    def alarms(self) -> tuple[float, float] | None:
        """False alarms in a day of listening without a pause, in the longest clips and in the shortest."""
        return self.seconds and (self.share * DAY / self.seconds[1], self.share * DAY / self.seconds[0])


@dataclass(frozen=True)
class HighScore:
    """A clip with one of the highest scores, by its original name; the score is calibrated."""

    machine: str
    split: str
    clip: str
    score: float
    alarm: bool


def monitoring(
    system: System, run: Path, data: Path | None, count: int = 10
) -> tuple[list[MachineSummary], list[HighScore]]:
    """The machines that a system has heard, and the clips that stand out.

    data: the data set; None takes it from where the run had it
    count: clips to name; fewer of a small data set
    """
    columns = ["machine", "split", "clip", "score", "calibrated"]
    machine, split, clip, score, calibrated = rows_of(system.fused, columns)
    try:
        limits = thresholds(system.fused)
    except InputError:  # tables that were made elsewhere may have no training clips
        return [], []
    formats, machines, alarm = read_formats(run), [], np.zeros(len(score), bool)
    for title, key, rows in sections(system.fused):
        alarm[rows] = score[rows] > limits[key]
        train = rows & (split == "train")
        seconds = formats[key[0]].seconds if key[0] in formats else None
        machines.append(MachineSummary(title, int(train.sum()), limits[key], float(alarm[train].mean()), seconds))
    before = original_names(data or Path(system.result["made"].get("data", "")))
    names = [f"{m}/{s}/{c}" for m, s, c in zip(machine, split, clip, strict=True)]
    return machines, [
        HighScore(machine[i], split[i], before.get(names[i], clip[i]), float(calibrated[i]), bool(alarm[i]))
        for i in np.argsort(-calibrated, kind="stable")[:count]
    ]
