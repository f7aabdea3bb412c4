"""What to know at one glance: which system, how good on new machines, how much better than what, what next."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from fusion.labelled import LabelledScores, labelled_rows
from fusion.resampling import compare
from orchestrator.report.collect import Run, System
from scoring.bootstrap import Interval
from scoring.errors import InputError
from scoring.metrics import has_labels
from scoring.table import join

_OVER = {"best_single": "the best single configuration", "uniform": "uniform weights"}


@dataclass(frozen=True)
class Difference:
    """How much Omega a system has beyond another one, in per cent; 95 % intervals, over machines if there are two."""

    over: str
    gain: float
    clips: Interval
    machines: Interval | None
    delivered: bool = False

    @property
    def meaning(self) -> str:
        """What the intervals say; to the delivered method itself there is a difference where another was chosen."""
        if self.delivered:
            return "the cost of choosing the method without the machine"
        for name, interval in (("these machines", self.clips), ("other machines", self.machines)):
            if interval and interval[0] <= 0 <= interval[1]:
                return f"within chance on {name}"
        return "better" if self.gain > 0 else "worse"


@dataclass(frozen=True)
class Verdict:
    """The best system of a run, its differences to others, its weakest machine, and what to do next."""

    system: System
    differences: list[Difference]
    weakest: tuple[str, float] | None
    next: list[tuple[str, str]]


def verdict(run: Run) -> Verdict:
    """Of the system with the highest Omega; of the first one where nothing is labelled."""
    best = max(run.systems, key=lambda system: -1.0 if system.omega is None else system.omega)
    delivered, measured = best.result["delivered"], best.result["machines"]
    hmeans = {m: v["hmean"] for m, v in (measured["lomo"] or measured["in_sample"] or {}).items() if v["hmean"]}
    differences = [
        Difference(_OVER[name], g["gain"], tuple(g["clips"]), tuple(g["machines"]), name == delivered["method"])
        for name, g in delivered["gains"].items()
    ]
    return Verdict(
        best,
        _paired(best, run) + differences,
        min(hmeans.items(), key=lambda item: item[1]) if len(hmeans) > 1 else None,
        _next(run, best),
    )


def _paired(best: System, run: Run) -> list[Difference]:
    """To the baseline and the other systems on the same clips, each scored with weights chosen without its machine."""
    own = _held_out(best)
    if own is None:
        return []
    others = {f"system {system.name}": _held_out(system) for system in run.systems if system is not best}
    if best.baseline is not None:
        others = {f"the {best.result['baseline']['name']}": _labelled(best.baseline), **others}
    differences = []
    for name, table in others.items():
        if table is None:
            continue
        try:
            _, scores = join({best.name: own, name: table}, "score")
        except InputError:  # of other clips
            continue
        pair = LabelledScores.of((best.name, name), scores, own)
        gain = compare(pair, {"": 1}, np.random.default_rng(0))[1][""]
        machines = gain.machines if len(set(pair.machines)) > 1 else None
        differences.append(Difference(name, gain.gain, gain.clips, machines))
    return differences


def _held_out(system: System) -> pa.Table | None:
    """The labelled clips, scored by weights that no label of their machine has chosen; None if there are none."""
    if system.held_out is None and not system.result["delivered"]["lomo"]:
        return _labelled(system.fused)  # with fewer than two labelled machines weights are uniform
    return system.held_out


def _labelled(table: pa.Table | None) -> pa.Table | None:
    return table.take(labelled_rows(table)) if table is not None and has_labels(table) else None


def _next(run: Run, best: System) -> list[tuple[str, str]]:
    """Commands, and what they are for."""
    if "spec" not in best.result:  # tables that were made elsewhere
        return [("tutti fuse --weights result.json --tables DIR --out OUT", "applies these weights to other tables")]
    folder, name = shlex.quote(run.folder), shlex.quote(best.name)
    return [
        (f"tutti ui --out {folder}", "compares the branches in MLflow"),
        (f"tutti report {folder} --audio 5", "adds its worst false alarms and misses, to listen to"),
        (f"tutti export {folder} {name} --out model", "packages it to score new recordings"),
        (f"tutti submission make {folder} {name} --label NAME_PLACE_task2", "makes the challenge's package"),
    ]
