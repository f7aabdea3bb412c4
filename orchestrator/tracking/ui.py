"""The MLflow UI on a run's own store, opened where people want to look."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import NoReturn

from orchestrator.ledger.folders import read_record
from orchestrator.tracking.store import SERVER, relocate, sqlite_uri
from orchestrator.tracking.views import BRANCHES, TREE, link
from scoring.errors import InputError


def serve(out: Path, port: int, say: Callable[[str], None]) -> NoReturn:
    """Become MLflow's server, until that is stopped.

    say: gets the addresses

    Raises InputError if `out` has no store or a damaged one, or the port is taken.
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
    if not os.access(database, os.W_OK) or not os.access(database.parent, os.W_OK):
        database = _copied(database)
    from orchestrator.tracking.tracker import find_tracker, reaching

    server, store = f"http://127.0.0.1:{port}", sqlite_uri(database)
    with reaching(store):
        relocate(database, out)
        experiments = _experiments(database)
    find_tracker(store, out, "Default")  # of another MLflow the server would print a traceback
    for experiment in experiments:
        say(f"tree:     {link(server, experiment, TREE)}\nbranches: {link(server, experiment, BRANCHES)}")
    say(f"MLflow on {database} answers there in some seconds; Ctrl-C stops it")
    stores = ["--backend-store-uri", store, "--registry-store-uri", store]
    quiet = ["--workers", "1", "--uvicorn-opts", "--log-level warning"]
    os.chdir(database.parent)  # where MLflow puts what has no place of its own
    os.environ |= {"PYTHONWARNINGS": "ignore", "MLFLOW_LOGGING_LEVEL": "WARNING"}
    sys.stdout.flush()
    os.execv(
        sys.executable,
        [sys.executable, "-m", "mlflow", "ui", *stores, *quiet, "--host", "127.0.0.1", "--port", str(port)],
    )


def where_shown(uri: str | None, out: Path) -> str:
    """The command or the address that shows the runs of a folder which were sent to the store at a URI."""
    if uri is None:
        return f"tutti ui --out {out}"
    if not uri.startswith(SERVER):
        return f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
    from orchestrator.tracking.tracker import find_tracker

    record, tracker = read_record(out), None
    with suppress(InputError):  # it may be gone by now
        tracker = find_tracker(uri, out, record.tags["experiment"]) if record else None
    return link(uri, tracker.experiment_id, TREE) if tracker else uri


def _copied(database: Path) -> Path:
    """A copy in a temporary folder: MLflow writes to what it shows."""
    folder = Path(mkdtemp(prefix="tutti-ui-"))
    for file in database.parent.glob(f"{database.name}*"):  # with its journal, if a process was killed
        shutil.copyfile(file, folder / file.name)
    return folder / database.name


def _experiments(database: Path) -> list[str]:
    """Ids of the experiments with runs, the newest first; read here, since MLflow's client takes seconds to load."""
    query = "SELECT experiment_id FROM runs WHERE lifecycle_stage = 'active' GROUP BY 1 ORDER BY max(start_time) DESC"
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as store:
        return [str(row[0]) for row in store.execute(query)]
