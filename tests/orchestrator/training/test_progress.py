"""What a run shows, fed with the events that Tune sends."""

from __future__ import annotations

import io
import logging
import os
import sys
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest
from rich.console import Console

from branches.spec import BackboneSpec, BranchSpec, FrozenSpec, MeanSpec, TrainingSpec
from orchestrator.cost import duration
from orchestrator.plan import Branch
from orchestrator.training.progress import Board, Row, Watcher, reason, shown, table_of, visible


def step(number, loss, stage="branch", steps=100):
    return {"stage": stage, "step": number, "steps": steps, "loss": loss}


def branch(name, **settings):
    spec = BranchSpec(backbone=BackboneSpec(path="tiny"), training=TrainingSpec(steps=100), **settings)
    return Branch(name, "config", f"systems/{name}", ("s",), spec, ())


def trial(name, error_file=None, **last_result):
    return SimpleNamespace(config={"branch_id": name}, last_result=last_result, error_file=error_file)


def play(watcher):
    """One branch ends well, one fails, one is under way, one waits."""
    for name in ("a", "b", "c"):
        watcher.on_trial_start(0, [], trial(name))
    watcher.on_trial_result(0, [], trial("a"), step(50, 1.25))
    watcher.on_trial_result(0, [], trial("a"), step(100, 1.0))
    watcher.on_trial_result(0, [], trial("a"), {"omega": 61.5})
    watcher.on_trial_complete(0, [], trial("a", omega=61.5))
    watcher.on_trial_complete(0, [], trial("b", failure="the loss is not finite"))
    watcher.on_trial_result(0, [], trial("c"), step(30, 2.0))


def test_lines_where_there_is_no_terminal(capsys):
    with shown([branch(name) for name in "abcd"], clips=10, resources={"CPU": 1.0}) as watcher:
        play(watcher)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("[0/4] systems/a: started")
    assert any(line.startswith("[1/4] systems/a: Omega 61.50") for line in lines)
    assert any(line.startswith("[2/4] systems/b: the loss is not finite") for line in lines)
    assert not any("step 30" in line for line in lines)  # not every report is worth a line


def everything(descriptor):
    """What has been written to a terminal."""
    text = b""
    with suppress(BlockingIOError):
        while piece := os.read(descriptor, 4096):
            text += piece
    return text.decode()


def test_words_stay_whole_at_80_columns():
    now = time.monotonic()
    running = Row("attentive/arcface_full_subcluster/0", 1000, 1.0, "running", 600, 3.21, began=now - 4000)
    running.heard = (10, now - 400)
    text = "RuntimeError: CUDA out of memory. Tried to allocate 20 GiB"
    failed = Row("mahalanobis/softmax_lora/1", 1000, 1.0, "failed", text=text, began=now - 4000, ended=now)
    console = Console(width=80, file=io.StringIO())
    console.print(table_of(Board({"a": running, "b": failed}, {}), 24))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for word in ("training", "600/1000", "3.210", "67 min", "failed", "to go"):
        assert any(word in line for line in lines[2:])
    assert any(line.rstrip().endswith("…") for line in lines)


def test_a_live_table_on_a_terminal(monkeypatch):
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")
        monkeypatch.setenv("LINES", "30")
        handler = logging.StreamHandler(terminal)
        logging.getLogger().addHandler(handler)
        try:
            with shown([branch(name) for name in "abcd"], clips=10, resources={"CPU": 2.0}) as watcher:
                play(watcher)
                logging.getLogger("orchestrator").warning("told meanwhile")
                assert handler.stream is not terminal
        finally:
            logging.getLogger().removeHandler(handler)
        assert handler.stream is terminal
        terminal.flush()
        os.set_blocking(ours, False)
        text = everything(ours)
    os.close(ours)
    assert "told meanwhile" in text
    assert "1 of 4 branches finished, 1 running, 1 failed, 2 CPU in use" in text
    for piece in ("Omega 61.50", "the loss is not finite", "30/100", "queued", "training"):
        assert piece in text


def test_the_time_to_go_follows_the_speed():
    board = Board({"a": Row("a", 100, 3.0), "b": Row("b", 100, 1.0)}, {"CPU": 1.0}, began=0.0)
    watcher = Watcher(board, lines=False)
    assert board.seconds_to_go(10.0) is None
    watcher.on_trial_start(0, [], trial("a"))
    a = board.rows["a"]
    a.step, a.heard = 50, (10, 4.0)
    assert a.seconds_to_go(8.0) == pytest.approx(50 * 4 / 40)
    assert board.seconds_to_go(8.0) == pytest.approx(8 * (4 - 1.5) / 1.5)


def test_a_branch_that_raises_says_why_at_once(capsys, tmp_path):
    (tmp_path / "error.txt").write_text("Failure # 1\nTraceback\nMemoryError: 3 GB\n\n")
    with shown([branch("a")], clips=10, resources={}) as watcher:
        watcher.on_trial_start(0, [], trial("a"))
        watcher.on_trial_error(0, [], trial("a", str(tmp_path / "error.txt")))
    assert "[1/1] a: MemoryError: 3 GB" in capsys.readouterr().err.replace("systems/", "")
    assert reason("") == "failed; its process was lost"


def test_a_retried_branch_is_timed_anew():
    board = Board({"a": Row("a", 100, 1.0)}, {"CPU": 1.0})
    watcher = Watcher(board, lines=False)
    watcher.on_trial_start(0, [], trial("a"))
    watcher.on_trial_result(0, [], trial("a"), step(50, 1.0))
    watcher.on_trial_start(0, [], trial("a"))
    assert board.rows["a"].seconds_to_go(board.rows["a"].began + 1) is None


def test_what_there_is_no_room_for_waits():
    rows = {str(i): Row(str(i), 10, 1.0) for i in range(100)}
    rows["7"].state = "failed"
    rows["9"].state = "running"
    assert [row.name for row in visible(Board(rows, {}), 3)] == ["9", "7", "0"]


def test_a_frozen_branch_only_embeds():
    with shown([branch("a", strategy=FrozenSpec(), pooling=MeanSpec())], clips=10, resources={}) as watcher:
        watcher.on_trial_start(0, [], trial("a"))
        (row,) = watcher._board.rows.values()
    assert row.now() == "scoring"


@pytest.mark.parametrize(("seconds", "text"), [(7.6, "8 s"), (600, "10 min"), (11_100, "3 h 05 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text
