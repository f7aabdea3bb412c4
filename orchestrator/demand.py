"""What Ray sets aside for a branch: CPUs and GPUs as asked for, and memory as asked for or as measured.

A branch whose configuration has not been measured sets aside its share of a node, so that a node is full when its
memory is; later ones what the first of their configuration needed. A branch that was killed sets aside twice as much
at its next try, and so has fewer beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from cluster.capacity import GIB
from orchestrator.own_process import ProcessDied

MARGIN = 1.1  # over what was measured
NAMES_OF_KILLS = (ProcessDied.__name__, "OutOfMemoryError")


@dataclass(frozen=True)
class Demand:
    """Resources of each branch; Tune asks for them when it is about to queue the branch.

    fixed: for every branch; with a `memory`, nothing is measured
    share, largest: bytes that fall to a branch, and that the largest node has; 0 where Ray counts no memory
    measured: file with the peak of each configuration, GiB, which outlives the run
    configs: config_id by branch_id
    """

    fixed: Mapping[str, float]
    share: float
    largest: float
    measured: Path
    configs: Mapping[str, str]

    def __call__(self, config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
        """What the branch of a trial sets aside."""
        return self._with_memory(self.fixed.get("memory") or self._memory(config["branch_id"]))

    def _memory(self, branch_id: str) -> float:
        peak = read_peaks(self.measured).get(self.configs[branch_id])
        return self.share if peak is None else min(peak * GIB * MARGIN, self.largest)

    def doubled(self, before: tune.PlacementGroupFactory) -> tune.PlacementGroupFactory:
        """Twice the memory, or all of the largest node's."""
        return self._with_memory(min(2 * before.required_resources.get("memory", 0.0), self.largest))

    def _with_memory(self, memory: float) -> tune.PlacementGroupFactory:
        return tune.PlacementGroupFactory([{**self.fixed, "memory": int(memory)}])


class Measure(tune.Callback):  # type: ignore[misc]  # Ray publishes no types
    """Notes what finished branches needed, and gives more to those that were killed."""

    def __init__(self, demand: Demand) -> None:
        self._demand = demand

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        peak = trial.last_result.get("memory_gib")
        if peak is not None:
            config = self._demand.configs[trial.config["branch_id"]]
            note_peak(self._demand.measured, config, peak)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        last = str(trial.get_error()).rpartition("Failure # ")[2]
        if any(name in last for name in NAMES_OF_KILLS):
            trial.update_resources(self._demand.doubled(trial.placement_group_factory))


def read_peaks(path: Path) -> dict[str, float]:
    """Peak memory by config_id, GiB; empty where nothing has been measured, or the file is damaged."""
    try:
        return {str(config): float(peak) for config, peak in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def note_peak(path: Path, config: str, peak: float) -> None:
    """Keep the largest peak of a configuration."""
    known = read_peaks(path)
    if peak > known.get(config, 0.0):
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({**known, config: round(peak, 3)}))
        temporary.replace(path)
