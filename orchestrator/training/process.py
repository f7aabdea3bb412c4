"""A process of its own for each branch, forked from a server that has already imported what branches need.

Ray's workers live on from branch to branch, so that a branch starts at once; what it leaves behind in memory, on the
CPU and on the GPU, goes with its process. The server itself never touches a GPU.

A worker imports nothing but this module, so that it is there at once; what a branch needs is imported in its process,
which should not have to import Tune.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable
from importlib import import_module
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from scoring.errors import PLACE_ERRNOS, InputError

# What every branch needs, imported by the server.
_IMPORTED_ONCE = (
    "orchestrator.training.worker",
    "branches.frozen",
    "branches.training.finetuning",
    "branches.generator",
    "torchaudio.compliance.kaldi",
)
_TORCH = "torch torchaudio"  # torchaudio's libraries are linked against those of one torch
# Modules of other packages that a branch's process loads, and what to install together for each.
_LOADED = {
    **{name: name for name in ("numpy", "scipy", "pyarrow", "soundfile")},
    **{"sklearn": "scikit-learn", "torch": _TORCH, "torchaudio": _TORCH},
}
# The forkserver's socket lies in the temporary folder, with 27 bytes of its own of the 107 that a path may have.
_LONGEST_FOLDER = 80
KILLED = "its process was killed, most likely for lack of memory"  # as the kernel does
# What Ray says where it has killed, before pages of figures, and what people are told.
MEMORY_FULL = "killed due to the node running low on memory"
MEMORY_REMEDY = (
    "killed, since the machine's memory is fuller than Ray's threshold, by default 95 %; end other programs, or raise "
    "it: RAY_memory_usage_threshold=0.98 tutti run …"
)
_context = multiprocessing.get_context("forkserver")


def check_installation() -> None:
    """Raise `InputError`, before minutes go into data, if a module does not load that every branch needs."""
    for module in (*_LOADED, *_IMPORTED_ONCE):
        try:
            import_module(module)
        except (ImportError, OSError) as error:  # an OSError where a library does not fit its neighbours
            reason = (str(error) or type(error).__name__).splitlines()[0]
            remedy = f"pip install --upgrade --force-reinstall {_LOADED.get(module, _TORCH)}"
            raise InputError(f"{module} does not load: {reason}; {remedy}") from None


class ProcessDied(RuntimeError):
    """A branch's process ended without a word; killed from outside if it says `KILLED`."""


class WorkFailed(RuntimeError):
    """What was raised in a branch's process, as text: the error itself may need imports, or not survive the way.

    may_pass: whether another try may succeed, see `may_pass`
    """

    def __init__(self, text: str, may_pass: bool) -> None:
        super().__init__(text)
        self.may_pass = may_pass


def packed(value: Any) -> bytes:
    """A value for a branch's process, which a worker can pass on without the imports that the value needs."""
    return bytes(ForkingPickler.dumps(value))


def trial(config: dict[str, Any], branches: dict[str, bytes], shared: bytes) -> None:
    """Tune's trainable; see `orchestrator.training.launch.launch`. What it raises is tried again by Tune."""
    from ray import tune

    try:
        outcome = {"omega": in_own_process(branches[config["branch_id"]], shared, _report)}
    except WorkFailed as error:
        if error.may_pass:
            raise
        outcome = {"failure": str(error)}
    tune.report(outcome)


def _report(stage: str, step: int, steps: int, loss: float) -> None:
    from ray import tune

    tune.report({"stage": stage, "step": step, "steps": steps, "loss": loss})


def in_own_process(subject: bytes, shared: bytes, report: Callable[..., Any]) -> Any:
    """What `work(subject, *arguments, report)` returns, called in a new process, which ends if this one does.

    Parameters
    ----------
    subject: packed
    shared: packed tuple of `work`, a function of a module, and `arguments`
    report: called here with what the process calls its `report` with

    Raises ProcessDied if the process ended before `work` did. Raises WorkFailed if `work` raised something; its last
    line says what.
    """
    if len(os.fsencode(tempfile.gettempdir())) > _LONGEST_FOLDER:
        tempfile.tempdir = "/tmp"
    _context.set_forkserver_preload([*_IMPORTED_ONCE, "ray"])  # Ray, since a child runs its parent's main module anew
    receiver, sender = _context.Pipe(duplex=False)
    process = _context.Process(target=_child, args=(sender, subject, shared), daemon=True)
    process.start()
    sender.close()
    try:
        while True:
            kind, *values = receiver.recv()
            if kind == "report":
                report(*values)
            elif kind == "raised":
                raise WorkFailed(*values)
            else:
                return values[0]
    except EOFError:
        process.join()
        raise _death(process.exitcode or 0) from None
    finally:
        receiver.close()
        process.kill()
        process.join()


def _death(exit_code: int) -> ProcessDied:
    if exit_code == -signal.SIGKILL:
        return ProcessDied(f"{KILLED} (see --memory-per-branch)")
    reason = f"died of {signal.Signals(-exit_code).name}" if exit_code < 0 else f"ended with exit code {exit_code}"
    return ProcessDied(f"its process {reason}")


def _child(sender: Connection, subject: bytes, shared: bytes) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work, *arguments = ForkingPickler.loads(shared)
        result = work(ForkingPickler.loads(subject), *arguments, lambda *values: sender.send(("report", *values)))
    except InputError as error:
        sender.send(("raised", str(error), False))
    except Exception as error:
        sender.send(("raised", "".join(traceback.format_exception(error)).strip(), may_pass(error)))
    else:
        sender.send(("done", result))


def may_pass(error: Exception) -> bool:
    """Whether it was bad luck: memory, a GPU, a file system or a server that failed. Other errors come at every try."""
    if isinstance(error, OSError):  # connections, timeouts and the storage among them
        return error.errno not in PLACE_ERRNOS
    return isinstance(error, MemoryError) or type(error).__name__ == "AcceleratorError"  # torch's


def _end_with_parent() -> None:
    """A worker that is killed takes its branch along: it would train beside the one that takes its place."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)
