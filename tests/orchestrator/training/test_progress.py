"""What a run shows, fed with the events that Tune sends."""

import logging
import os
import pickle
import sys
from types import SimpleNamespace

from branches.spec import BackboneSpec, BranchSpec, TrainingSpec
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
    watcher.on_trial_result(0, [], trial("c"), step(3, 0.5, "generator", 5))
    watcher.on_trial_start(0, [], trial("c"))  # its worker was lost
    watcher.on_trial_result(0, [], trial("c"), step(30, 2.0))


def test_lines_where_there_is_no_terminal(capsys, monkeypatch, tmp_path):
    (tmp_path / "error.txt").write_text("Failure # 1\nTraceback\nMemoryError: 3 GB\n\n")
    with shown([branch(name) for name in "abcd"], clips=10, resources={"CPU": 1.0}) as watcher:
        play(watcher)
        monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
        watcher.on_trial_result(0, [], trial("c"), step(4, 0.5, "generator", 5))
        watcher.on_trial_result(0, [], trial("c"), step(60, 1.5))
        watcher.on_trial_complete(0, [], trial("c", omega=None))
        watcher.on_trial_start(0, [], trial("d"))
        watcher.on_trial_error(0, [], trial("d", str(tmp_path / "error.txt")))
    assert [line.rpartition(" (")[0].partition(", about")[0] for line in capsys.readouterr().err.splitlines()] == [
        *(f"[0/4] systems/{name}: started" for name in "abc"),
        "[1/4] systems/a: Omega 61.50",
        "[2/4] systems/b: ValueError: the loss is not finite",
        "[2/4] systems/c: started",  # and not every report is worth a line
        "[2/4] systems/c: generator: step 4 of 5, loss 0.500",
        "[2/4] systems/c: step 60 of 100, loss 1.500",
        "[3/4] systems/c: no labels to measure it by",
        "[3/4] systems/d: started",
        "[4/4] systems/d: MemoryError: 3 GB",
    ]
    assert reason("") == "failed; its process was lost"


def test_live_progress_on_a_terminal(monkeypatch):
    ours, theirs = os.openpty()
    os.set_blocking(ours, False)
    for name, value in {"TERM": "xterm", "COLUMNS": "120", "LINES": "30"}.items():
        monkeypatch.setenv(name, value)
    with os.fdopen(ours, "rb") as read, os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
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
        text = read.read().decode()
    before, _, last = text.rpartition("1 of 4 branches finished")
    assert "told meanwhile" in before
    assert "1 running, 1 failed, 2 CPU, 8 GiB memory each" in last
    for piece in ("systems/b", "failed: ValueError: the loss is not fi", "systems/c", "step 30 of 100, loss 2.000"):
        assert last.count(piece) == 1
