"""The outbox: sends what is finished to MLflow while a run goes on, and keeps what cannot be sent for later."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from orchestrator.ledger.folders import RECORD, Record, Status, write_record
from orchestrator.tracking.descriptions import Shown, mark_of, marks, shown, shown_run
from orchestrator.tracking.tracker import StoreRefuses, Tracker, open_tracker

log = logging.getLogger(__name__)

POLL_SECONDS = 3.0  # between looks for what is new


class Outbox:
    """Everything in the run folder `out` that MLflow does not have yet.

    A thread of the driver calls `send` again and again. The ledger's folders and MLflow's tags are the only state, so
    that any later process can go on.
    """

    def __init__(self, uri: str | None, out: Path, experiment: str) -> None:
        """Connect to the store at a URI, by default the folder's own.

        Raises InputError if there is none. One that is there and refuses, such as a locked one, is tried again later.
        """
        self._uri, self._experiment = uri, experiment
        self._out = out.resolve()  # while Ray starts the working directory is another
        self._tracker: Tracker | None = None
        with suppress(StoreRefuses):  # which is told when there is something to send
            self._store()
        self._parent: str | None = None
        self._sent: set[str] = set()
        self._complained = False

    def close(self, status: Status) -> int:
        """Send what is left, and end the folder's own run with this status; the number of what could not be sent."""
        tags = {"experiment": self._experiment}
        record = Record(name=self._out.name, identity={"role": "run"}, status=status, tags=tags)
        write_record(self._out, record)
        return self.send() + (not self._attempt(self._end, record))

    def send(self) -> int:
        """Send what MLflow lacks; the number of what could not be sent."""
        waiting = {path: mark for path, mark in marks(self._out).items() if mark not in self._sent}
        if not waiting and self._parent is not None:
            return 0
        if not self._attempt(self._open):
            return len(waiting)
        return sum(not self._attempt(self._send, path, mark) for path, mark in waiting.items())

    def _store(self) -> Tracker:
        if self._tracker is None:
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
