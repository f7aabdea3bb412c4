"""The outbox: sends the ledger's records to MLflow while a run goes on, and keeps what cannot be sent for later."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

from orchestrator.ledger.folders import Record, Status, only_driver, read_record, records, write_record
from orchestrator.tracking.presentation import Shown, shown
from orchestrator.tracking.tracker import Tracker, mark, open_tracker, reaching
from scoring.errors import InputError
from scoring.table import file_sha256

log = logging.getLogger(__name__)

POLL_SECONDS = 3.0


class Outbox:
    """Everything under `out` that MLflow does not have yet.

    Inside a `with` block a thread of the driver looks for new records; a server that is away is tried again and again.
    The ledger's folders and MLflow's tags are the only state, so that any later process can go on.
    """

    def __init__(self, tracker: Tracker, out: Path) -> None:
        self._tracker = tracker
        self._out = out
        self._parent: str | None = None
        self._systems: dict[str, str] = {}  # ids of their runs
        self._sent: set[str] | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="outbox")
        self._trouble = ""

    def __enter__(self) -> Outbox:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def close(self, status: Status, files: Sequence[Path] = ()) -> int:
        """End the folder's own run with this status and files of `out`, and send what is left; the number unsent."""
        self.__exit__()
        name, identity = self._out.resolve().name, self._tracker.parent_identity
        checksums = {str(path.relative_to(self._out)): file_sha256(path) for path in files}
        tags = {"experiment": self._tracker.experiment}
        write_record(self._out, Record(name=name, identity=identity, status=status, tags=tags, files=checksums))
        return self.flush()

    def flush(self) -> int:
        """Send all that waits, the folder's own run last; the number of records that could not be sent."""
        waiting = self.send()
        record = read_record(self._out)
        if record is not None:
            try:
                self._tracker.check()
                self._tracker.send(self._out, record)
                self._tracker.close_strays(record.status)
                self._tracker.send_views(self._branches())
            except Exception as error:
                self._complain(error)
                waiting += 1
        return waiting

    def send(self) -> int:
        """Send what MLflow lacks; the number of records that could not be sent."""
        unsent = [(f, r) for f, r in records(self._out) if self._sent is None or mark(r) not in self._sent]
        if not unsent and self._parent is not None:
            return 0
        try:
            self._tracker.check()
            with reaching(self._tracker.uri):
                self._sent = self._tracker.sent()
                if self._parent is None:
                    self._parent = self._tracker.open_parent(self._out.resolve().name)
                    self._tracker.send_views(self._branches())
        except InputError as error:
            self._complain(error)
            return len(unsent)
        return sum(not self._send(folder, record) for folder, record in unsent if mark(record) not in self._sent)

    def _send(self, folder: Path, record: Record) -> bool:
        try:
            self._tracker.send(folder, record, self._parents(record))
        except Exception as error:  # of the network, the server, its database or its files: all of them may pass
            self._complain(error)
            return False
        assert self._sent is not None
        self._sent.add(mark(record))
        self._trouble = ""
        return True

    def _parents(self, record: Record) -> list[str]:
        """A branch stands under one of its systems, a system under the folder's own run."""
        assert self._parent is not None
        if record.identity["role"] != "branch":
            return [self._parent]
        for name in (names := record.tags["system"].split(",")):
            if name not in self._systems:
                self._systems[name] = self._tracker.open_system(name, self._parent)
        return [self._systems[name] for name in names]

    def _branches(self) -> list[Shown]:
        return [shown(folder, record) for folder, record in records(self._out) if record.identity["role"] == "branch"]

    def _watch(self) -> None:
        while True:
            self.send()
            if self._ended.wait(POLL_SECONDS):
                return

    def _complain(self, error: Exception) -> None:
        """Say once what is wrong, until something could be sent again."""
        trouble = (str(error).splitlines() or [type(error).__name__])[0]
        if not self._trouble:
            log.warning("MLflow: %s; results are kept in %s and sent later", trouble, self._out)
        self._trouble = trouble


def send_waiting(out: Path, tracking_uri: str | None) -> int:
    """Send what a run in `out` could not send; the number of records that still wait.

    Raises
    ------
    InputError
        If no run has been made in `out` or one is under way, or the store does not answer.
    """
    record = read_record(out)
    if record is None:
        raise InputError(f"{out}: no run has ended there; `tutti run` sends its results itself")
    with only_driver(out):
        return Outbox(open_tracker(tracking_uri, out, record.tags["experiment"]), out).flush()
