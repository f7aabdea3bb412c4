"""What a run shows, fed with the events that Tune sends."""

import logging
import os
import pickle
import sys
from contextlib import suppress
from types import SimpleNamespace

import pytest

from branches.spec import BackboneSpec, BranchSpec, TrainingSpec
from orchestrator.cost import duration
from orchestrator.plan import Branch
from orchestrator.training import progress
from orchestrator.training.progress import reason, shown


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
    watcher.on_trial_complete(0, [], trial("b", failure="Traceback\nValueError: the loss is not finite"))
    watcher.on_trial_result(0, [], trial("c"), step(30, 2.0))


def test_lines_where_there_is_no_terminal(capsys, monkeypatch):
    with shown([branch(name) for name in "abcd"], clips=10, resources={"CPU": 1.0}) as watcher:
        play(watcher)
        monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
        watcher.on_trial_result(0, [], trial("c"), step(60, 1.5))
        watcher.on_trial_start(0, [], trial("c"))  # its worker was lost
        watcher.on_trial_complete(0, [], trial("c", omega=None))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("[0/4] systems/a: started")
    assert any(line.startswith("[1/4] systems/a: Omega 61.50") for line in lines)
    assert any(line.startswith("[2/4] systems/b: ValueError: the loss is not finite") for line in lines)
    assert not any("step 30" in line for line in lines)  # not every report is worth a line
    assert any(line.startswith("[2/4] systems/c: step 60 of 100, loss 1.500") for line in lines)
    assert lines[-1].startswith("[3/4] systems/c: no labels to measure it by")


def everything(descriptor):
    """What has been written to a terminal."""
    text = b""
    with suppress(BlockingIOError):
        while piece := os.read(descriptor, 4096):
            text += piece
    return text.decode()


def test_live_progress_on_a_terminal(monkeypatch):
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")
        monkeypatch.setenv("LINES", "30")
        handler = logging.StreamHandler(terminal)
        logging.getLogger().addHandler(handler)
        try:
            with shown([branch(name) for name in "abcd"], 10, {"CPU": 2.0, "memory": float(8 << 30)}) as watcher:
                play(watcher)
                pickle.dumps(watcher)  # as Tune does
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
    assert "1 of 4 branches finished" in text
    assert "1 running, 1 failed, 2 CPU, 8 GiB memory each" in text
    for piece in ("systems/b", "failed: ValueError: the loss is not fi", "systems/c", "step 30 of 100, loss 2.000"):
        assert piece in text


def test_a_branch_that_raises_says_why_at_once(capsys, tmp_path):
    (tmp_path / "error.txt").write_text("Failure # 1\nTraceback\nMemoryError: 3 GB\n\n")
    with shown([branch("a")], clips=10, resources={}) as watcher:
        watcher.on_trial_start(0, [], trial("a"))
        watcher.on_trial_error(0, [], trial("a", str(tmp_path / "error.txt")))
    assert "[1/1] systems/a: MemoryError: 3 GB" in capsys.readouterr().err
    assert reason("") == "failed; its process was lost"


@pytest.mark.parametrize(("seconds", "text"), [(7.6, "8 s"), (600, "10 min"), (11_100, "3 h 05 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text
