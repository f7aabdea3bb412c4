"""What a worker of Ray does for a branch: start its process, pass its reports on, say how it ended.

A worker imports nothing else, so that it is there at once; what a branch needs is imported in the branch's process,
which imports this module too, and should not have to import Tune.
"""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

from orchestrator.own_process import in_own_process


def packed(value: Any) -> bytes:
    """A value for a branch's process, which a worker can pass on without the imports that the value needs."""
    return bytes(ForkingPickler.dumps(value))


def trial(config: dict[str, Any], branches: dict[str, bytes], shared: bytes) -> None:
    """Tune's trainable; see `orchestrator.launch.launch`."""
    from ray import tune

    outcome, peak = in_own_process(_outcome, branches[config["branch_id"]], shared, report=_report)
    tune.report({**outcome, "memory_gib": peak} if "omega" in outcome else outcome)


def _outcome(branch: bytes, shared: bytes, report: Callable[..., None]) -> dict[str, Any]:
    """In the branch's process: its Omega, or why it was given up or would fail at every try."""
    from orchestrator.worker import Hopeless
    from scoring.errors import InputError

    work, job, index = ForkingPickler.loads(shared)
    try:
        return {"omega": work(ForkingPickler.loads(branch), job, index, report)}
    except InputError as error:
        return {"failure": str(error)}
    except Hopeless as reason:
        return {"given_up": str(reason)}


def _report(stage: str, step: int, steps: int, loss: float) -> None:
    from ray import tune

    tune.report({"stage": stage, "step": step, "steps": steps, "loss": loss})
