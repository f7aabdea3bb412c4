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

from orchestrator.cost import duration, petaflop
from orchestrator.plan import Branch

if TYPE_CHECKING:
    from rich.console import RenderableType

LINE_SECONDS = 30.0  # between two lines of one branch
_HEADER = ("branch", "state", "step", "loss", "time", "to go", "result")
FRAME = 4  # lines of the live table that are no branch

State = Literal["running", "failed", "given up", "finished", "queued", "embedded"]


@dataclass
class Row:
    """One branch: where it stands, and when its training was first heard of, for the time it has to go.

    cost: PFLOP, roughly
    text: Omega, why it failed, or what it is waiting for
    scoring: whether only its scores are left, for which no GPU is set aside
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
    scoring: bool = False

    @property
    def done(self) -> float:
        """The part of it that is done, 0 to 1."""
        return 1.0 if self.ended else self.step / max(self.steps, 1)

    def seconds_to_go(self, now: float) -> float | None:
        """Seconds until the last step at the speed so far; None if that is not known yet."""
        if self.heard is None or self.step <= self.heard[0]:
            return None
        return (self.steps - self.step) * (now - self.heard[1]) / (self.step - self.heard[0])

    def now(self) -> str:
        """What it is doing."""
        if self.state != "running":
            return self.state
        if self.scoring:
            return "scoring"
        return "training" if self.step < self.steps else "embedding"


@dataclass
class Board:
    """All branches of a run by id, in the order in which they start; without anything that cannot be pickled."""

    rows: dict[str, Row]
    resources: dict[str, float]
    began: float = field(default_factory=time.monotonic)

    def count(self, state: State) -> int:
        """How many branches are in a state."""
        return sum(row.state == state for row in self.rows.values())

    def seconds_to_go(self, now: float) -> float | None:
        """Seconds until all are done, if the rest goes at the speed so far; None if nothing has been done yet."""
        total = sum(row.cost for row in self.rows.values())
        done = sum(row.cost * row.done for row in self.rows.values())
        return (now - self.began) * (total - done) / done if done else None

    def headline(self, now: float) -> str:
        """Counts, resources in use and the time to go, in one line."""
        running = self.count("running")
        computing = sum(row.state == "running" and not row.scoring for row in self.rows.values())
        counts = f"{self.count('finished')} of {len(self.rows)} branches finished, {running} running"
        failed = f", {self.count('failed')} failed" if self.count("failed") else ""
        busy = {name: computing if name == "GPU" else running for name in self.resources}
        used = "".join(f", {busy[name] * amount:g} {name}" for name, amount in self.resources.items())
        return f"{counts}{failed}{used} in use; {duration(now - self.began)} passed{_to_go(self.seconds_to_go(now))}"


def _row(branch: Branch, clips: int) -> Row:
    steps = 0 if branch.spec.is_frozen else branch.spec.training.steps
    return Row(branch.name, steps, petaflop(branch.spec, clips))


@contextmanager
def shown(branches: Sequence[Branch], clips: int, resources: Mapping[str, float]) -> Iterator[tune.Callback]:
    """A callback for Tune that keeps people informed until the block ends.

    branches: in the order in which they start
    clips: of the data set
    resources: of one branch
    """
    rows = {branch.branch_id: _row(branch, clips) for branch in branches}
    board = Board(rows, dict(resources))
    if not sys.stderr.isatty():
        yield Watcher(board, lines=True)
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    # Lines that are logged meanwhile go through the table's own stream, which puts them above it.
    handlers = [h for h in logging.getLogger().handlers if isinstance(h, logging.StreamHandler)]
    with Live(
        get_renderable=lambda: table_of(board, console.width, console.height), console=console, redirect_stdout=False
    ):
        old = [handler.setStream(sys.stderr) for handler in handlers]
        try:
            yield Watcher(board, lines=False)
        finally:
            for handler, stream in zip(handlers, old, strict=True):
                handler.setStream(stream)


class Watcher(tune.Callback):  # type: ignore[misc]
    """Keeps the board, and prints lines when a branch starts, ends or fails, and now and then while it trains."""

    def __init__(self, board: Board, lines: bool) -> None:
        self._board = board
        self._lines = lines
        self._said: dict[str, float] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        row = self._row(trial)
        scoring = trial.config["part"] == "scores"
        row.state, row.scoring, row.heard = "running", scoring, None
        if not scoring or not row.began:
            row.began = time.monotonic()
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
        if trial.config["part"] == "embeddings" and "omega" in trial.last_result:
            self._row(trial).state = "embedded"
            return
        omega, failure, given_up = (trial.last_result.get(key) for key in ("omega", "failure", "given_up"))
        text = (
            (failure and reason(failure))
            or given_up
            or ("no labels to measure it by" if omega is None else f"Omega {omega:.2f}")
        )
        self._end(trial, "failed" if failure else "given up" if given_up else "finished", text)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # `trial.get_error()` reads a copy that is not there yet.
        self._end(
            trial, "failed", reason(Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else None)
        )

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


def table_of(board: Board, width: int, height: int) -> RenderableType:
    """The board in at most `height` lines of `width`: what is running and what failed before all else."""
    from rich import box
    from rich.table import Table

    now = time.monotonic()
    table = Table(
        title=board.headline(now), title_style="bold", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    rows = visible(board, height - FRAME)
    cells = [_HEADER, *(_cells(row, now) for row in rows)]
    name, *others, result = (max(map(len, column)) for column in zip(*cells, strict=True))
    # Where there is too little room names and results give way; all other words stay whole.
    room = max(width - sum(others) - 3 * len(_HEADER), 24)
    result = min(result, max(room - name, room // 2))
    widths = [min(name, room - result), *others, result]
    for i, (title, columns) in enumerate(zip(_HEADER, widths, strict=True)):
        justify: Literal["left", "right"] = "right" if 2 <= i < 6 else "left"
        table.add_column(title, justify=justify, width=columns, overflow="ellipsis", no_wrap=True)
    for row, texts in zip(rows, cells[1:], strict=True):
        table.add_row(*texts, style={"failed": "bold red", "queued": "dim"}.get(row.state))
    hidden = len(board.rows) - table.row_count
    if hidden:
        table.caption = f"and {hidden} more"
    return table


def visible(board: Board, room: int) -> list[Row]:
    """The rows that there is room for: running, failed, last finished, next in the queue."""
    rows = list(board.rows.values())
    running = [row for row in rows if row.state == "running"]
    failed = [row for row in rows if row.state == "failed"]
    finished = sorted((row for row in rows if row.state in ("finished", "given up")), key=lambda row: -row.ended)
    queued = [row for row in rows if row.state in ("embedded", "queued")]
    return [*running, *failed, *finished, *queued][: max(room, 1)]


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


def reason(trace: str | None) -> str:
    """The last line of a traceback, which says what went wrong."""
    return ([line for line in (trace or "").splitlines() if line.strip()] or ["failed; its process was lost"])[
        -1
    ].strip()


def _to_go(seconds: float | None) -> str:
    return f", about {duration(seconds)} to go" if seconds else ""
