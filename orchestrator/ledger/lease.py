"""Drivers on nodes that share no file system: one at a time, each going on from what the last one left in the storage.

The last driver signs in the storage, again and again while it is at work. Two that begin in the same moment do not see
each other: each would train what the other trains, and the later one's report and MLflow store would be kept.
"""

from __future__ import annotations

import json
import logging
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.ledger.storage import DRIVER, NODE, Storage, every
from orchestrator.tracking.tracker import folder_id
from scoring.errors import InputError

log = logging.getLogger(__name__)

BEAT_SECONDS = 20.0
GONE_SECONDS = 120.0  # after its last sign of life a driver is taken for dead


@dataclass(frozen=True)
class Signature:
    """What a driver signs with.

    node: token of its output folder
    host: for people
    run: id of the folder's run, empty until there is one
    state: `fetching` the run, `at work` or `ended`
    """

    node: str
    host: str
    run: str
    state: str


@contextmanager
def stored_run(storage: Storage, out: Path) -> Iterator[None]:
    """Fetch the stored run before the block, unless this folder has left it there itself, and store it after the block.

    Raises
    ------
    InputError
        If another driver is at work, or the folder has another run than the storage.
    StorageAway
        If the storage cannot be reached before the block; after it that is a warning.
    """
    node, last = _node(out), _last(storage)
    if last is not None and last.node != node:
        silent = storage.age(DRIVER)
        if last.state != "ended" and silent < GONE_SECONDS:
            raise InputError(
                f"{storage.uri}: another run is writing there, on {last.host}, {silent:.0f} s ago; "
                f"wait until it ends, or {GONE_SECONDS:.0f} s after it was killed, or give another --storage"
            )
        if last.run and (mine := folder_id(out)) and last.run != mine:
            raise InputError(f"{out} has another run than {storage.uri}; give another --out or another --storage")

    def sign(state: str) -> None:
        storage.write(DRIVER, json.dumps(asdict(Signature(node, socket.gethostname(), folder_id(out), state))).encode())

    def is_mine() -> bool:
        now = _last(storage)
        return now is None or now.node == node

    if not folder_id(out) or (last is not None and (last.node != node or last.state == "fetching")):
        sign("fetching")
        storage.pull_run()
    sign("at work")
    try:
        with every(BEAT_SECONDS, lambda: sign("at work") if is_mine() else None):
            yield
    finally:
        try:
            if is_mine():
                storage.push_run()
                sign("ended")
            else:
                log.warning("%s: another driver has taken over; this one's report stays in %s", storage.uri, out)
        except Exception as error:  # each protocol has its own; what the run says must not be lost for that
            log.warning("%s: not everything could be stored (%s); run again to do so", storage.uri, error)


def _last(storage: Storage) -> Signature | None:
    """The last driver's signature; None before the first, and for a damaged one."""
    content = storage.read(DRIVER)
    try:
        return None if content is None else Signature(**json.loads(content))
    except (ValueError, TypeError):
        return None


def _node(out: Path) -> str:
    """The token of an output folder, which other nodes' folders under the same path do not have."""
    path = out / NODE
    if not path.exists():
        path.write_text(uuid.uuid4().hex, encoding="utf-8")
    return path.read_text(encoding="utf-8")
