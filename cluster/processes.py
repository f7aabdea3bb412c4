"""Ray's own processes on this machine: no signal that goes to all of a run's ends them, the end of the session does."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil


@contextmanager
def starting() -> Iterator[None]:
    """Connect to Ray in this block; nothing is left of a connection that fails or is interrupted."""
    import ray

    # Ray puts one in its place that ends the process as it stands.
    on_sigterm = signal.getsignal(signal.SIGTERM)
    before = set(psutil.Process().children(recursive=True))
    try:
        yield
    except BaseException as error:
        ray.shutdown()
        _end(set(psutil.Process().children(recursive=True)) - before)  # Ray forgets what it has half started
        if isinstance(error, SystemExit):  # what Ray makes of a SIGTERM
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Processes that are started here see no signal that goes to all of a run's.

    `timeout`, systemd and Slurm send SIGTERM, a terminal that is closed SIGHUP. The driver needs Ray's to stop its
    branches and to close its record; it ends them itself, and heeds one that comes meanwhile at the end of the block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_at_once() -> None:
    """Have `ray.shutdown` kill all processes below this node; it would ask each to end and wait a second for it."""
    from ray._private.worker import _global_node

    raylet = psutil.Process(_global_node.all_processes["raylet"][0].process.pid)
    kill_all_processes = _global_node.kill_all_processes

    def kill(**_: Any) -> None:
        # Workers and agents too: without the raylet some of them would stay for minutes.
        started = raylet.children(recursive=True) if raylet.is_running() else []
        kill_all_processes(check_alive=False, allow_graceful=False)
        _end(started)

    _global_node.kill_all_processes = kill


def _end(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
