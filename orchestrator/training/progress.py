"""What a run shows while branches train: one live table on a terminal, plain lines elsewhere, both on stderr."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ray import tune

from cluster.capacity import amount
from orchestrator.cost import duration, petaflop
from orchestrator.plan import Branch

if TYPE_CHECKING:
    from rich.table import Table

LINE_SECONDS = 30.0  # between two lines of one branch
FRAME = 5  # lines of the live table that are no branch

State = Literal["running", "failed", "finished", "queued"]
_HEADER = ("branch", "state", "step", "loss", "time", "to go", "result")
_STYLES = {"failed": "bold red", "queued": "dim"}


@dataclass
class Row:
    """One branch: where it stands, and when its training was first heard of, for the time it has to go.

    cost: PFLOP, roughly
    text: Omega, why it failed, or what it is waiting for
    """

    name: str
    steps: int
    cost: float
    state: State = "queued"
    step: int = 0
    loss: float | None = None
    text: str = ""
    began: float = 0.0
    ended: float = 0.0
    heard: tuple[int, float] | None = None

    def seconds_to_go(self, now: float) -> float | None:
        """Seconds until the last step at the speed so far; None if that is not known yet."""
        if self.heard is None or self.step <= self.heard[0]:
            return None
        return (self.steps - self.step) * (now - self.heard[1]) / (self.step - self.heard[0])

    def now(self) -> str:
        """What it is doing."""
        if self.state != "running":
            return self.state
        return "training" if self.step < self.steps else "scoring"


@dataclass
class Board:
    """All branches of a run by id, in the order in which they start; without anything that cannot be pickled.

    resources: of one branch, memory in bytes
    """

    rows: dict[str, Row]
    resources: dict[str, float]
    began: float = field(default_factory=time.monotonic)

    def count(self, state: State) -> int:
        """How many branches are in a state."""
        return sum(row.state == state for row in self.rows.values())

    def seconds_to_go(self, now: float) -> float | None:
        """Seconds until all are done, if the rest goes at the speed so far; None if nothing has been done yet."""
        total = sum(row.cost for row in self.rows.values())
        done = sum(row.cost * (1.0 if row.ended else row.step / max(row.steps, 1)) for row in self.rows.values())
        return (now - self.began) * (total - done) / done if done else None

    def headline(self, now: float) -> str:
        """Counts, resources in use and the time to go, in one line."""
        running, failed = self.count("running"), self.count("failed")
        counts = f"{self.count('finished')} of {len(self.rows)} branches finished, {running} running"
        used = "".join(f", {amount(name, running * value)}" for name, value in self.resources.items())
        passed = f"{duration(now - self.began)} passed{_to_go(self.seconds_to_go(now))}"
        return f"{counts}{f', {failed} failed' if failed else ''}{used} in use; {passed}"


@contextmanager
def shown(branches: Sequence[Branch], clips: int, resources: Mapping[str, float]) -> Iterator[tune.Callback]:
    """A callback for Tune that keeps people informed until the block ends.

    branches: in the order in which they start
    clips: of the data set
    resources: of one branch, memory in bytes
    """
    rows = {b.branch_id: Row(b.name, b.spec.training.steps, petaflop(b.spec, clips)) for b in branches}
    for branch in [branch for branch in branches if branch.spec.is_frozen]:
        rows[branch.branch_id].steps = 0
    board = Board(rows, dict(resources))
    if not sys.stderr.isatty():
        yield Watcher(board, lines=True)
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    # Lines that are logged meanwhile go through the table's own stream, which puts them above it.
    handlers = [h for h in logging.getLogger().handlers if isinstance(h, logging.StreamHandler)]
    with Live(get_renderable=lambda: table_of(board, console.height), console=console, redirect_stdout=False):
        old = [handler.setStream(sys.stderr) for handler in handlers]
        try:
            yield Watcher(board, lines=False)
        finally:
            for handler, stream in zip(handlers, old, strict=True):
                handler.setStream(stream)


class Watcher(tune.Callback):  # type: ignore[misc]  # Ray publishes no types
    """Keeps the board, and prints lines when a branch starts, ends or fails, and now and then while it trains."""

    def __init__(self, board: Board, lines: bool) -> None:
        self._board = board
        self._lines = lines
        self._said: dict[str, float] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        row = self._row(trial)
        row.state, row.heard, row.began = "running", None, time.monotonic()
        self._say(row, "started")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "step" not in result:
            return
        row, now = self._row(trial), time.monotonic()
        step = f"step {result['step']} of {result['steps']}, loss {result['loss']:.3f}"
        if result["stage"] == "branch":
            row.step, row.loss, row.text = result["step"], result["loss"], ""
            row.heard = row.heard or (row.step, now)
            step += _to_go(row.seconds_to_go(now))
        else:
            row.text = step = f"{result['stage']}: {step}"
        if now - self._said.get(row.name, row.began) >= LINE_SECONDS:
            self._said[row.name] = now
            self._say(row, step)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        omega, failure = (trial.last_result.get(key) for key in ("omega", "failure"))
        if failure:
            self._end(trial, "failed", reason(failure))
        else:
            self._end(trial, "finished", "no labels to measure it by" if omega is None else f"Omega {omega:.2f}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # `trial.get_error()` reads a copy that is not there yet.
        text = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""
        self._end(trial, "failed", reason(text))

    def _end(self, trial: Any, state: State, text: str) -> None:
        row = self._row(trial)
        row.state, row.text, row.ended = state, text, time.monotonic()
        self._say(row, text)

    def _row(self, trial: Any) -> Row:
        return self._board.rows[trial.config["branch_id"]]

    def _say(self, row: Row, text: str) -> None:
        if self._lines:
            ended = sum(bool(other.ended) for other in self._board.rows.values())
            passed = duration(time.monotonic() - self._board.began)
            print(f"[{ended}/{len(self._board.rows)}] {row.name}: {text} ({passed})", file=sys.stderr, flush=True)


def table_of(board: Board, height: int) -> Table:
    """The board in at most `height` lines: what is running and what failed before all else."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    now = time.monotonic()
    table = Table(
        title=board.headline(now), title_style="bold", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for title in _HEADER:
        left = title in ("branch", "state", "result")
        # Where there is too little room names and results give way; all other words stay whole.
        gives_way = title in ("branch", "result")
        table.add_column(title, justify="left" if left else "right", no_wrap=not gives_way)
    for row in visible(board, height - FRAME):
        cells = [Text(cell, no_wrap=True, overflow="ellipsis") for cell in _cells(row, now)]
        table.add_row(*cells, style=_STYLES.get(row.state))
    hidden = len(board.rows) - table.row_count
    if hidden:
        table.caption = f"and {hidden} more"
    return table


def visible(board: Board, room: int) -> list[Row]:
    """The rows that there is room for: running, failed, last finished, next in the queue."""
    order: tuple[State, ...] = ("running", "failed", "finished", "queued")
    rows = sorted(board.rows.values(), key=lambda row: (order.index(row.state), -row.ended))
    return rows[: max(room, 1)]


def _cells(row: Row, now: float) -> tuple[str, ...]:
    left = row.seconds_to_go(now) if row.now() == "training" else None
    return (
        row.name,
        row.now(),
        f"{row.step}/{row.steps}" if row.step else "",
        "" if row.loss is None else f"{row.loss:.3f}",
        duration((row.ended or now) - row.began) if row.began else "",
        "" if left is None else duration(left),
        row.text,
    )


def reason(text: str) -> str:
    """The last line of a traceback, which says what went wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "failed; its process was lost"


def _to_go(seconds: float | None) -> str:
    return f", about {duration(seconds)} to go" if seconds else ""
