"""A process of its own for each branch, forked from a server that has already imported what branches need.

Ray's workers live on from branch to branch, so that a branch starts at once; what it leaves behind in memory, on the
CPU and on the GPU, goes with its process. The server itself never touches a GPU.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.pool import ExceptionWithTraceback  # type: ignore[attr-defined]  # keeps a traceback's text
from typing import Any

GIB = 1 << 30
# Ray too, since a child runs its parent's main module anew.
_IMPORTED_ONCE = ["orchestrator.worker", "branches.frozen", "branches.train", "branches.generator", "ray"]
_context = multiprocessing.get_context("forkserver")


class ProcessDied(RuntimeError):
    """A branch's process ended without a word: it was killed, or took itself down."""


def in_own_process(work: Callable[..., Any], *arguments: Any, report: Callable[..., Any]) -> tuple[Any, float]:
    """Call `work(*arguments, report)` in a new process, which ends if this one does.

    Parameters
    ----------
    work: a function of a module; it and its arguments are pickled
    report: called here with what the process calls its `report` with

    Returns
    -------
    result: what `work` returned
    peak: the most memory that the process had, GiB

    Raises
    ------
    ProcessDied
        If the process ended before `work` did.
    Exception
        What `work` raised.
    """
    _context.set_forkserver_preload(_IMPORTED_ONCE)
    receiver, sender = _context.Pipe(duplex=False)
    process = _context.Process(target=_child, args=(sender, work, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        while True:
            kind, *values = receiver.recv()
            if kind == "report":
                report(*values)
            elif kind == "raised":
                raise values[0]
            else:
                return values[0], values[1]
    except EOFError:
        process.join()
        raise ProcessDied(_last_words(process.exitcode)) from None
    finally:
        receiver.close()
        process.kill()
        process.join()


def _last_words(exit_code: int | None) -> str:
    if exit_code == -signal.SIGKILL:
        return "its process was killed, most likely for want of memory (see --memory-per-branch)"
    if exit_code is not None and exit_code < 0:
        return f"its process died of {signal.Signals(-exit_code).name}"
    return f"its process ended with exit code {exit_code}"


def _child(sender: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        result = work(*arguments, lambda *values: sender.send(("report", *values)))
    except Exception as error:
        _send_error(sender, error)
    else:
        sender.send(("done", result, peak_memory()))


def _end_with_parent() -> None:
    """A worker that is killed takes its branch along: it would train beside the one that takes its place."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)


def _send_error(sender: Connection, error: Exception) -> None:
    try:
        sender.send(("raised", ExceptionWithTraceback(error, error.__traceback__)))
    except Exception:  # some errors hold what cannot be pickled
        sender.send(("raised", RuntimeError("".join(traceback.format_exception(error)))))


def peak_memory() -> float:
    """The most memory that this process has had so far, GiB; what it shares with others counts in full."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / GIB
