"""The outbox: sends what is finished to MLflow while a run goes on, and keeps what cannot be sent for later."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.ledger.folders import RECORD, Record, Status, read_record, write_record
from orchestrator.tracking.descriptions import Shown, mark_of, marks, run_files, shown, shown_run
from orchestrator.tracking.store import StoreRefuses, database_of, store_uri
from scoring.atomic import atomic

if TYPE_CHECKING:
    from orchestrator.tracking.tracker import Tracker

log = logging.getLogger(__name__)

POLL_SECONDS = 3.0  # between looks for what is new
SENT = ".sent"  # of a run folder: what it and its database were when everything had been sent


class Outbox:
    """Everything in the run folder `out` that MLflow does not have yet.

    A thread of the driver calls `send` again and again. The ledger's folders and MLflow's tags are the only state, so
    that any later process can go on; while neither they nor the database's file change, MLflow is not even loaded.
    """

    def __init__(self, uri: str | None, out: Path, experiment: str) -> None:
        """Connect to the store at a URI, by default the folder's own.

        Raises InputError if there is none. One that is there and refuses, such as a locked one, is tried again later.
        """
        self._out = out.resolve()  # while Ray starts the working directory is another
        self._uri, self._experiment = uri and store_uri(uri, self._out), experiment
        self._tracker: Tracker | None = None
        self._complete = True
        if not self._is_complete():
            with suppress(StoreRefuses):  # which is told when there is something to send
                self._store()
        self._parent: str | None = None
        self._sent: set[str] = set()
        self._complained = False

    def begin(self) -> None:
        """Show the run as running, though there may be nothing to send yet."""
        self._complete = False

    def close(self, status: Status) -> int:
        """Send what is left, and end the folder's own run with this status; the number of what could not be sent."""
        tags = {"experiment": self._experiment}
        record = Record(name=self._out.name, identity={"role": "run"}, status=status, tags=tags)
        write_record(self._out, record)
        if self._is_complete():
            return 0
        waiting = self.send() + (not self._attempt(self._end, record))
        if not waiting and (state := self._state()):
            with atomic(self._out / SENT) as temporary:
                temporary.write_text(state, encoding="utf-8")
        return waiting

    def send(self) -> int:
        """Send what MLflow lacks; the number of what could not be sent."""
        if self._is_complete():
            return 0
        waiting = {path: mark for path, mark in marks(self._out).items() if mark not in self._sent}
        if not waiting and self._parent is not None:
            return 0
        if not self._attempt(self._open):
            return len(waiting)
        return sum(not self._attempt(self._send, path, mark) for path, mark in waiting.items())

    def _is_complete(self) -> bool:
        """Whether nothing has changed since everything was sent."""
        note = self._out / SENT
        self._complete = self._complete and note.exists() and note.read_text(encoding="utf-8") == self._state()
        return self._complete

    def _state(self) -> str:
        """Digest of what MLflow shows and of its database's state; empty of a server, whose state cannot be seen."""
        uri = store_uri(self._uri, self._out)
        database, files = database_of(uri), [self._out / RECORD, *(self._out / file for file in run_files(self._out))]
        if not uri.startswith("sqlite") or not all(path.exists() for path in (database, *files)):
            return ""
        state, contents = database.stat(), [*marks(self._out).values(), *map(mark_of, files)]
        parts = self._out, self._experiment, uri, state.st_ino, state.st_size, state.st_mtime_ns, contents
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _store(self) -> Tracker:
        if self._tracker is None:
            from orchestrator.tracking.tracker import open_tracker  # loads MLflow, which takes seconds

            self._tracker = open_tracker(self._uri, self._out, self._experiment)
        return self._tracker

    def _open(self) -> None:
        tracker = self._store()
        tracker.check()
        if self._parent is None:
            self._sent = tracker.sent()
            self._parent = tracker.open_run(self._out.name)
            tracker.send_views(self._parts())

    def _send(self, path: Path, mark: str) -> None:
        look = None if mark in self._sent else shown(path)
        if look is not None:
            self._store().send(look, mark, self._parents(look))
            self._complained = False
        self._sent.add(mark)

    def _end(self, record: Record) -> None:
        self._open()
        tracker, parts = self._store(), self._parts()
        tracker.send(shown_run(self._out, record, parts), mark_of(self._out / RECORD))
        tracker.close_strays(record.status)
        tracker.send_views(parts)

    def _parents(self, look: Shown) -> list[str]:
        """A branch stands under one of its systems; a system, and a branch of none, under the folder's own run."""
        assert self._parent is not None
        names = look.tags["system"].split(",") if look.tags.get("system") else []
        return [self._store().open_system(name, self._parent) for name in names] or [self._parent]

    def _parts(self) -> list[Shown]:
        return [look for path in marks(self._out) if (look := shown(path))]

    def _attempt(self, action: Callable[..., None], *arguments: object) -> bool:
        """Whether it could be done; if not, the first complaint says why, until something could be sent again."""
        try:
            action(*arguments)
        except Exception as error:  # of the network, the server, its database or its files: all of them may pass
            if not self._complained:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                log.warning("MLflow: %s; results are kept in %s and sent later", reason, self._out)
            self._complained = True
            return False
        return True


def experiment_name(data: Path, fingerprint: str, out: Path) -> str:
    """One experiment per data set and run folder; a folder's own stays what it is when clips are added."""
    record = read_record(out)
    if record is not None and "experiment" in record.tags:
        return record.tags["experiment"]
    return f"{out.resolve().name} on {data.resolve().name} {fingerprint[:8]}"
