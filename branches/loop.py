"""The loop under every training: resume, step, check the loss, save now and then.

A step must draw all its randomness from its own number, so that a training that resumes from a checkpoint at step k
continues exactly as if it had not stopped.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from branches.spec import TrainingSpec
from branches.train import Report, learning_rate
from scoring.errors import InputError

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """Where a training stands; everything of it is in the checkpoint."""

    modules: Mapping[str, nn.Module]
    optimizer: torch.optim.Optimizer
    step: int = 0
    recent: list[float] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write the checkpoint; a crash leaves the old one."""
        state = {
            "step": self.step,
            "recent": self.recent,
            "optimizer": self.optimizer.state_dict(),
            **{name: module.state_dict() for name, module in self.modules.items()},
        }
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        torch.save(state, temporary)
        os.replace(temporary, path)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint; what is raised by a damaged one depends on the damage."""
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(state[name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.recent = state["step"], state["recent"]


def resume(start: Callable[[], Progress], checkpoint: Path | None) -> Progress:
    """The training of `checkpoint`, or a new one where there is none or it is damaged."""
    progress = start()
    if checkpoint is None or not checkpoint.exists():
        return progress
    try:
        progress.restore(checkpoint)
    except Exception as error:  # a damaged file can fail in any way, and starting anew is always right
        log.warning("checkpoint %s cannot be used (%s); training starts anew", checkpoint, str(error).split("\n")[0])
        return start()
    return progress


def run(
    progress: Progress,
    training: TrainingSpec,
    loss_of: Callable[[int], Tensor],
    checkpoint: Path | None,
    report: Report,
    checkpoint_seconds: float,
) -> None:
    """Take the steps that are left.

    Parameters
    ----------
    progress: where to go on from; changed in place
    loss_of: the loss of the step of this number, a scalar with gradients
    checkpoint, report, checkpoint_seconds: as in `branches.train.train`

    Raises
    ------
    InputError
        If the loss is no longer a finite number. The checkpoint is removed then: going on from it would only
        end the same.
    """
    report_every = max(1, training.steps // 50)
    saved = time.monotonic()
    while progress.step < training.steps:
        loss = _descend(progress, training, loss_of)
        if not math.isfinite(loss):
            if checkpoint is not None:
                checkpoint.unlink(missing_ok=True)
            raise InputError(f"the loss is {loss} at step {progress.step}: training diverged; lower the learning rate")
        progress.recent.append(loss)
        progress.step += 1
        if progress.step % report_every == 0 or progress.step == training.steps:
            report(progress.step, float(np.mean(progress.recent)))
            progress.recent = []
        if checkpoint is not None and time.monotonic() - saved >= checkpoint_seconds:
            progress.save(checkpoint)
            saved = time.monotonic()


def _descend(progress: Progress, training: TrainingSpec, loss_of: Callable[[int], Tensor]) -> float:
    for group in progress.optimizer.param_groups:
        group["lr"] = learning_rate(training, progress.step)
    loss = loss_of(progress.step)
    progress.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    trained = [p for group in progress.optimizer.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(trained, training.gradient_clip)
    progress.optimizer.step()
    return loss.item()
