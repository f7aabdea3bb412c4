"""The loop under every training: resume, step, average, check the loss, save now and then.

A batch must draw all its randomness from the seed and its own number, so that a training that resumes from a
checkpoint at step k continues exactly as if it had not stopped.
"""

from __future__ import annotations

import errno
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from branches.beats.checkpoint import save_tensors
from branches.spec import TrainingSpec
from scoring.errors import InputError

log = logging.getLogger(__name__)

GRADIENT_NORM = 1.0  # a larger one is cut to it

# Called now and then with the number of steps done and the mean loss since the last call.
Report = Callable[[int, float], None]


@dataclass
class Progress:
    """Where a training stands; everything of it that changes is in the checkpoint.

    module: what is trained; parameters that need no gradient stay as they are and are not saved
    optimizer: a group may have a `factor` on the learning rate
    signature: of the data; a checkpoint of a training on other data is not gone on from
    averaged: moving averages of the trained parameters, once they are kept
    recent: losses since the last report, left where they were computed: reading one waits for the GPU
    curve: what has been reported
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    signature: str
    averaged: list[Tensor] = field(default_factory=list)
    step: int = 0
    recent: list[Tensor] = field(default_factory=list)
    curve: list[tuple[int, float]] = field(default_factory=list)

    @property
    def trained(self) -> list[Tensor]:
        """The parameters that the optimizer changes."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def save(self, path: Path) -> None:
        """Write the checkpoint; a crash leaves the one before."""
        fixed = self._fixed()
        state = {
            "signature": self.signature,
            "step": self.step,
            "recent": self.recent,
            "curve": self.curve,
            "optimizer": self.optimizer.state_dict(),
            "averaged": self.averaged,
            "module": {name: value for name, value in self.module.state_dict().items() if name not in fixed},
        }
        save_tensors(state, path)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint; what is raised by a damaged one depends on the damage."""
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if state["signature"] != self.signature:
            raise ValueError("it belongs to a training on other clips or classes")
        self.module.load_state_dict({**self._fixed(), **state["module"]})
        self.optimizer.load_state_dict(state["optimizer"])
        device = self.trained[0].device
        self.averaged = [average.to(device) for average in state["averaged"]]
        self.step, self.recent = state["step"], [loss.to(device) for loss in state["recent"]]
        self.curve = state["curve"]

    def _fixed(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.module.named_parameters() if not p.requires_grad}


def resume(start: Callable[[], Progress], checkpoint: Path | None) -> Progress:
    """The training of `checkpoint`, or a new one where there is none or it is damaged."""
    progress = start()
    if checkpoint is None or not checkpoint.exists():
        return progress
    try:
        progress.restore(checkpoint)
    except Exception as error:  # a damaged file can fail in any way, and starting anew is always right
        if _is_of_this_moment(error):
            raise
        log.warning("checkpoint %s cannot be used (%s); training starts over", checkpoint, str(error).split("\n")[0])
        del progress  # a GPU has no room for two
        return start()
    return progress


def _is_of_this_moment(error: Exception) -> bool:
    """Whether the machine has failed and not the file; in a cut one, torch seeks what lies before its beginning."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, OSError) and error.errno != errno.EINVAL
    )


def run(
    progress: Progress,
    training: TrainingSpec,
    loss_of: Callable[[int], Tensor],
    checkpoint: Path | None,
    report: Report,
    checkpoint_seconds: float,
) -> None:
    """Take the steps that are left; at the end the trained parameters are their averages, if there are any.

    Parameters
    ----------
    progress: where to go on from; changed in place
    loss_of: the loss of the batch of this number, a scalar with gradients; a step has `accumulation` of them
    checkpoint: file to save to every `checkpoint_seconds`, or None
    report: see `Report`; a training that goes on from a checkpoint begins with what was reported before it

    Raises InputError if the loss is no longer a finite number. The checkpoint is removed then: going on from it would
    only end the same.
    """
    if training.average and not progress.averaged:
        progress.averaged = [p.detach().clone() for p in progress.trained]
    for point in progress.curve:
        report(*point)
    report_every = max(1, training.steps // 50)
    saved = time.monotonic()
    while progress.step < training.steps:
        progress.recent.append(_descend(progress, training, loss_of))
        progress.step += 1
        to_report = progress.step % report_every == 0 or progress.step == training.steps
        due = checkpoint if time.monotonic() - saved >= checkpoint_seconds else None
        if to_report or due:
            _check(progress, checkpoint)
        if to_report:
            progress.curve.append((progress.step, float(torch.stack(progress.recent).mean())))
            progress.recent = []
            report(*progress.curve[-1])
        if due:
            progress.save(due)
            saved = time.monotonic()
    with torch.no_grad():
        for parameter, averaged in zip(progress.trained, progress.averaged, strict=bool(progress.averaged)):
            parameter.copy_(averaged)


def _check(progress: Progress, checkpoint: Path | None) -> None:
    """Refuse to go on, report or save once a loss is not finite."""
    losses = torch.stack(progress.recent).tolist()
    bad = [loss for loss in losses if not math.isfinite(loss)]
    if bad:
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)
        step = progress.step - len(losses) + losses.index(bad[0])
        raise InputError(f"the loss is {bad[0]} at step {step}: training diverged; lower the learning rate")


def _descend(progress: Progress, training: TrainingSpec, loss_of: Callable[[int], Tensor]) -> Tensor:
    """One step; the mean loss of its batches."""
    optimizer = progress.optimizer
    for group in optimizer.param_groups:
        group["lr"] = group.get("factor", 1.0) * learning_rate(training, progress.step)
    optimizer.zero_grad(set_to_none=True)
    losses = []
    for part in range(training.accumulation):
        loss = loss_of(progress.step * training.accumulation + part) / training.accumulation
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
    nn.utils.clip_grad_norm_(progress.trained, GRADIENT_NORM)
    optimizer.step()
    if progress.averaged:
        _average(progress, training.average)
    return torch.stack(losses).sum()


@torch.no_grad()
def _average(progress: Progress, decay: float) -> None:
    """Move the averages; the first steps move them further, so that little of the start remains."""
    decay = min(decay, (1 + progress.step) / (10 + progress.step))
    torch._foreach_lerp_(progress.averaged, progress.trained, 1 - decay)


def learning_rate(training: TrainingSpec, step: int) -> float:
    """Linear warm-up to `learning_rate`, then half a cosine to zero at the last step."""
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / training.warmup_steps
    done = (step - training.warmup_steps) / max(1, training.steps - training.warmup_steps)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
