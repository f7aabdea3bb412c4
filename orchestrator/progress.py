"""What a run shows while branches train."""

from __future__ import annotations

import sys
import time
from typing import Any

from ray import tune

from orchestrator.plan import Branch

PROGRESS_SECONDS = 30.0


class Lines(tune.Callback):  # type: ignore[misc]
    """A line on stderr when a branch starts, ends or fails, and now and then while it trains."""

    def __init__(self, branches: dict[str, Branch]) -> None:
        self._branches = branches
        self._ended = 0
        self._started = time.monotonic()
        self._said: dict[str, float] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._say(trial, "started")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        now = time.monotonic()
        if "step" in result and now - self._said.get(trial.trial_id, self._started) >= PROGRESS_SECONDS:
            self._said[trial.trial_id] = now
            steps = self._branches[trial.config["branch_id"]].spec.training.steps
            self._say(trial, f"step {result['step']} of {steps}, loss {result['loss']:.3f}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended += 1
        omega, failure = (trial.last_result.get(key) for key in ("omega", "failure"))
        self._say(trial, failure or ("no labels to measure it by" if omega is None else f"Omega {omega:.2f}"))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended += 1
        self._say(trial, "failed")

    def _say(self, trial: Any, text: str) -> None:
        name = self._branches[trial.config["branch_id"]].name
        elapsed = time.monotonic() - self._started
        print(f"[{self._ended}/{len(self._branches)}] {name}: {text} ({elapsed:.0f} s)", file=sys.stderr, flush=True)
