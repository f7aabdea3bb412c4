"""What a run shows while branches train: live progress on a terminal, plain lines elsewhere, both on stderr."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from rich.console import Console, ConsoleOptions
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from cluster.capacity import amount
from orchestrator.cost import duration, petaflop
from orchestrator.plan import Branch
from orchestrator.training.process import MEMORY_FULL, MEMORY_REMEDY
from scoring.errors import counted

LINE_SECONDS = 30.0  # between two lines of one branch


@contextmanager
def shown(
    branches: Sequence[Branch],
    clips: int,
    resources: Mapping[str, float],
    before: tuple[int, int],
    generators: Mapping[str, float] | None = None,
) -> Iterator[tune.Callback]:
    """A callback for Tune that keeps people informed until the block ends.

    clips: of the data set
    resources: of one branch, memory in bytes
    before: branches of the run that were finished before, and all of them
    generators: PFLOP of those that branches train first, by branch_id
    """
    each = ", ".join(amount(name, value) for name, value in resources.items())
    progress = Progress(
        _NameColumn(table_column=Column(ratio=1, no_wrap=True)),
        BarColumn(10),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        # What stands in it is no markup.
        TextColumn(
            "{task.fields[text]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
        ),
        console=Console(stderr=True),
        redirect_stdout=False,  # which belongs to the result
        expand=True,
    )
    live = sys.stderr.isatty()
    watcher = Watcher(branches, clips, generators or {}, each, before, progress, lines=not live)
    if not live:
        with watcher.stopping():
            yield watcher
        return
    # Lines that are logged meanwhile go through the display's own stream, which puts them above it.
    handlers = [h for h in logging.getLogger().handlers if isinstance(h, logging.StreamHandler)]
    with progress, watcher.stopping():
        old = [handler.setStream(sys.stderr) for handler in handlers]
        try:
            yield watcher
        finally:
            for handler, stream in zip(handlers, old, strict=True):
                handler.setStream(stream)


class _NameColumn(ProgressColumn):
    """Names that are cut in the middle where there is too little room: the end, a seed, tells them from each other."""

    def render(self, task: Task) -> _Name:
        return _Name(task.description)


@dataclass(frozen=True)
class _Name:
    name: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        spare = len(self.name) - options.max_width
        end = len(self.name) - options.max_width // 2
        yield Text(self.name if spare <= 0 else f"{self.name[: end - spare - 1]}…{self.name[end:]}")


class Watcher(tune.Callback):  # type: ignore[misc]  # Ray publishes no types
    """Keeps the progress of all branches, and prints lines when one starts, ends or fails, and now and then between.

    each: what a branch sets aside, for people
    before: branches of the run that were finished before, and all of them
    progress: gets a task for each branch that runs or has failed, below one for all, which counts roughly PFLOP
    """

    def __init__(
        self,
        branches: Sequence[Branch],
        clips: int,
        generators: Mapping[str, float],
        each: str,
        before: tuple[int, int],
        progress: Progress,
        lines: bool,
    ) -> None:
        self._names = {branch.branch_id: branch.name for branch in branches}
        own = {branch.branch_id: max(petaflop(branch.spec, clips), 1e-6) for branch in branches}
        self._costs = {branch_id: cost + generators.get(branch_id, 0.0) for branch_id, cost in own.items()}
        self._own = {branch_id: cost / self._costs[branch_id] for branch_id, cost in own.items()}  # share of that
        self._each, self._progress, self._lines = each, progress, lines
        self._before, self._total = before
        self._all = progress.add_task("", total=sum(self._costs.values()), text="")
        self._tasks: dict[str, TaskID] = {}
        self._done: dict[str, float] = {}  # of each branch's cost, 0 to 1
        self._ended: dict[str, bool] = {}  # whether well
        self._began, self._said = time.monotonic(), dict[str, float]()
        self._count()

    def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
        """Tune keeps its callbacks in a file, from which a run never goes on; a copy elsewhere (ray://) is silent."""
        return tune.Callback, ()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        branch_id = trial.config["branch_id"]
        self._remove(branch_id)
        self._task(branch_id)
        self._say(branch_id, "started")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "step" not in result:
            return
        branch_id, step, steps = trial.config["branch_id"], result["step"], result["steps"]
        text, own = f"step {step} of {steps}, loss {result['loss']:.3f}", self._own[branch_id]
        if result["stage"] == "branch":
            self._done[branch_id] = 1 - own + own * step / steps
            text = "scoring" if step == steps else text
        else:
            self._done[branch_id] = (1 - own) * step / steps
            text = f"{result['stage']}: {text}"
        task = self._tasks[branch_id]
        self._progress.update(task, total=steps, completed=step, text=text)
        self._count()
        if time.monotonic() - self._said[branch_id] >= LINE_SECONDS:
            remaining = self._progress.tasks[self._progress.task_ids.index(task)].time_remaining
            self._say(branch_id, text + (f", about {duration(remaining)} to go" if remaining else ""))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        omega, failure = (trial.last_result.get(key) for key in ("omega", "failure"))
        text = "no labels to measure it by" if omega is None else f"Omega {omega:.2f}"
        self._end(trial.config["branch_id"], not failure, reason(failure) if failure else text)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # `trial.get_error()` reads a copy that is not there yet.
        text = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""
        self._end(trial.config["branch_id"], False, reason(text))

    def _end(self, branch_id: str, well: bool, text: str) -> None:
        self._ended[branch_id], self._done[branch_id] = well, 1.0
        if well:
            self._remove(branch_id)
        else:
            task = self._task(branch_id)  # it may never have begun
            self._progress.stop_task(task)
            self._progress.update(task, text=f"failed: {text}")
        self._count()
        self._say(branch_id, text)

    def _task(self, branch_id: str) -> TaskID:
        if branch_id not in self._tasks:
            self._tasks[branch_id] = self._progress.add_task(self._names[branch_id], total=None, text="")
        return self._tasks[branch_id]

    def _remove(self, branch_id: str) -> None:
        if branch_id in self._tasks:
            self._progress.remove_task(self._tasks.pop(branch_id))

    def _count(self) -> None:
        """Say how many branches there are of each kind, and what is done of all."""
        well, failed = self._before + sum(self._ended.values()), sum(not well for well in self._ended.values())
        running = f"{len(self._tasks) - failed} running"
        text = f"{running}, {failed} failed, {self._each} each" if failed else f"{running}, {self._each} each"
        done = sum(cost * self._done.get(branch_id, 0.0) for branch_id, cost in self._costs.items())
        description = f"{well} of {counted(self._total, 'branch')} finished"
        self._progress.update(self._all, description=description, completed=done, text=text)

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Say at once that the run ends, if it is stopped in this block; Ray and MLflow take some seconds to close."""
        try:
            yield
        except KeyboardInterrupt:
            self._progress.update(self._all, description="stopping …", text="", refresh=True)
            if self._lines:
                print("stopping …", file=sys.stderr, flush=True)
            raise

    def _say(self, branch_id: str, text: str) -> None:
        self._said[branch_id] = time.monotonic()
        if self._lines:
            counts = f"[{self._before + len(self._ended)}/{self._total}] {self._names[branch_id]}"
            passed = duration(time.monotonic() - self._began)
            print(f"{counts}: {text} ({passed})", file=sys.stderr, flush=True)


def reason(text: str) -> str:
    """The last line of a traceback, which says what went wrong."""
    if MEMORY_FULL in text:
        return MEMORY_REMEDY
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "failed; its process was lost"
