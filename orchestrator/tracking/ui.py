"""The MLflow UI on a run's own store, opened where people want to look."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from orchestrator.tracking.store import relocate, sqlite_uri
from orchestrator.tracking.views import BRANCHES, TREE, link
from scoring.errors import InputError

_START_SECONDS = 120.0


def serve(out: Path, port: int, say: Callable[[str], None]) -> int:
    """Serve until it is stopped; the server's exit code.

    say: gets the addresses, once there is an answer

    Raises
    ------
    InputError
        If `out` has no store, or the port is taken.
    """
    database = (out / "mlflow.db").resolve()
    if not database.exists():
        raise InputError(f"{database}: no such store; a run with --tracking-uri is shown by that server")
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise InputError(f"port {port} is taken; give another --port") from None
    server, store = f"http://127.0.0.1:{port}", sqlite_uri(database)
    stores = ["--backend-store-uri", store, "--registry-store-uri", store]
    quiet = ["--workers", "1", "--uvicorn-opts", "--log-level warning"]
    relocate(out)
    say(f"starting MLflow on {database}; this takes some seconds")
    output = tempfile.TemporaryFile()  # noqa: SIM115  # the server's own lines, in case that it does not start
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "ui", *stores, *quiet, "--host", "127.0.0.1", "--port", str(port)],
        cwd=out,  # where MLflow puts what has no place of its own
        env={**os.environ, "PYTHONWARNINGS": "ignore", "MLFLOW_LOGGING_LEVEL": "WARNING"},
        stdout=output,
        stderr=output,
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # with what follows, so that no server stays behind
    try:
        if not _answers(server, process):
            output.seek(0)
            say(output.read().decode(errors="replace"))
        else:
            for experiment in _experiments(database):
                say(f"tree:     {link(server, experiment, TREE)}\nbranches: {link(server, experiment, BRANCHES)}")
            say("Ctrl-C stops the server")
        return process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        process.terminate()
        process.wait()


def _answers(server: str, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(server, timeout=5):
                return True
        except OSError:
            time.sleep(0.2)
    return False


def _experiments(database: Path) -> list[str]:
    """Ids of the experiments with runs, the newest first; read here, since MLflow's client takes seconds to load."""
    query = "SELECT experiment_id FROM runs WHERE lifecycle_stage = 'active' GROUP BY 1 ORDER BY max(start_time) DESC"
    with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as store:
        return [str(row[0]) for row in store.execute(query)]
