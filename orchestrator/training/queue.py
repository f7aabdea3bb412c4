"""What Ray Tune runs, in order: each branch in one trial, or with GPUs in two, of which the second needs none.

Scoring computes on CPUs and may take as long as the pass through the network. A trial cannot give back a part of what
it has set aside, so a branch's GPU is free for the next one only if its scoring is a trial of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from orchestrator.training.job import Part


class BranchQueue(Searcher):  # type: ignore[misc]  # Ray publishes no types
    """Hands out branches and parts of them; scores are wanted as soon as a branch's embeddings are there.

    parts: what to begin with, by branch_id
    """

    def __init__(self, parts: Mapping[str, Part]) -> None:
        super().__init__()
        self._waiting: deque[tuple[str, Part]] = deque(parts.items())
        self._handed_out: dict[str, tuple[str, Part]] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: Any, **spec: Any) -> bool:
        """There are none."""
        return True

    def suggest(self, trial_id: str) -> dict[str, str] | str | None:
        """What the next trial is to do; None while that depends on those under way."""
        if not self._waiting:
            embedding = any(part == "embeddings" for _, part in self._handed_out.values())
            return None if embedding else Searcher.FINISHED
        branch_id, part = self._handed_out[trial_id] = self._waiting.popleft()
        return {"branch_id": branch_id, "part": part}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Queue the scoring of a branch whose embeddings have been made, before all that waits."""
        branch_id, part = self._handed_out.pop(trial_id)
        if part == "embeddings" and not error and result is not None and "omega" in result:
            self._waiting.appendleft((branch_id, "scores"))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a run that goes on reads from the ledger what is left to do."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


def begin_with(branch_ids: Sequence[str], embedded: set[str], gpus: float) -> dict[str, Part]:
    """The first part of each branch: where a GPU is set aside, those that have their embeddings need none."""
    if not gpus:
        return dict.fromkeys(branch_ids, "all")
    return {branch_id: "scores" if branch_id in embedded else "embeddings" for branch_id in branch_ids}
