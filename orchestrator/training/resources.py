"""What Ray sets aside for a branch: CPUs and GPUs as asked for, and memory as asked for or as measured.

A branch sets aside its share of a node, so that a node's memory is full when the node is. Once a configuration is
measured to need more than that, each sets aside what the first of its configuration needed, and small ones find room
beside large ones. Branches that were killed are tried again with more, and so have fewer beside them.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from cluster.capacity import GIB
from scoring.atomic import atomic

log = logging.getLogger(__name__)

MARGIN = 1.1  # over what was measured
STEP = GIB // 2  # Tune keeps a worker only for a branch that asks for exactly as much; a new one takes seconds


@dataclass(frozen=True)
class Demand:
    """Resources of each branch; Tune asks for them when it is about to queue the branch.

    fixed: for every branch; with a `memory`, nothing is measured
    share, largest: bytes that fall to a branch, and that the largest node has; 0 where Ray counts no memory
    measured: file with the peak of each configuration, GiB, which outlives the run
    configs: config_id by branch_id
    scale: of the memory
    """

    fixed: Mapping[str, float]
    share: float
    largest: float
    measured: Path
    configs: Mapping[str, str]
    scale: int = 1

    def __call__(self, config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
        """What the branch of a trial sets aside."""
        memory = self.fixed.get("memory") or self._measured(config["branch_id"])
        others = {name: amount for name, amount in self.fixed.items() if name != "GPU" or config["part"] != "scores"}
        return tune.PlacementGroupFactory([{**others, "memory": int(min(self.scale * memory, self.largest))}])

    def _measured(self, branch_id: str) -> float:
        peaks = {config: p for config, p in read_peaks(self.measured).items() if config in self.configs.values()}
        needs = {config: STEP * math.ceil(peak * GIB * MARGIN / STEP) for config, peak in peaks.items()}
        if max(needs.values(), default=0.0) <= self.share:
            return self.share
        return needs.get(self.configs[branch_id], self.share)


class Measure(tune.Callback):  # type: ignore[misc]  # Ray publishes no types
    """Notes what finished branches needed."""

    def __init__(self, demand: Demand) -> None:
        self._demand = demand

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        peak = trial.last_result.get("memory_gib")
        if peak is not None:
            config = self._demand.configs[trial.config["branch_id"]]
            try:
                note_peak(self._demand.measured, config, peak)
            except OSError as error:  # a full disk must not end the branches that are under way
                log.warning("%s: %s", self._demand.measured, error.strerror)


def read_peaks(path: Path) -> dict[str, float]:
    """Peak memory by config_id, GiB; empty where nothing has been measured, or the file is damaged."""
    try:
        return {str(config): float(peak) for config, peak in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def note_peak(path: Path, config: str, peak: float) -> None:
    """Keep the largest peak of a configuration."""
    peaks = read_peaks(path)
    if peak > peaks.get(config, 0.0):
        with atomic(path) as temporary:
            temporary.write_text(json.dumps({**peaks, config: round(peak, 3)}), encoding="utf-8")
