"""Storage for nodes that share no file system: what one node makes, another fetches, over any URI that fsspec knows.

Each node has an output folder of its own under the same path, and the storage has the same layout. One driver at a
time works on it: it signs with a heartbeat, and another one is refused until that has ended or fallen silent. Two that
begin in the same moment do not see each other.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

import fsspec  # type: ignore[import-untyped]
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from orchestrator.ledger.folders import (
    BRANCHES,
    FAILURES,
    ID,
    LOCATION,
    RECORD,
    REPORT,
    TABLES,
    Record,
    folder_id,
    is_intact,
    new_folder_id,
    read_record,
    write_record,
)
from scoring.atomic import atomic
from scoring.errors import InputError

log = logging.getLogger(__name__)

BEAT_SECONDS = 20.0
GONE_SECONDS = 120.0  # after its last sign of life a driver is taken for dead
NODE, DRIVER = ".node", ".driver"  # the token of an output folder, and the signature of the last driver
_PROBE = ".writable"
# Of one node or of the storage itself, or stored as they are made.
_LOCAL = ("cache", "checkpoints", "generated", ".lock", BRANCHES, FAILURES, LOCATION, NODE, DRIVER, _PROBE)
_CONSTANT = ("data", "mlartifacts")  # whose files do not change
LAST = "check.json"  # of a set of generated clips


class StorageAway(ConnectionError):
    """The storage cannot be reached, or refuses; another try may succeed."""


class Storage:
    """The storage at a URI, and an output folder on this node.

    Raises InputError if it cannot be written to, or a package for it is missing.
    """

    def __init__(self, uri: str, out: Path) -> None:
        if urlsplit(uri).password:  # it would be in logs and in the list of processes
            raise InputError("--storage has a password in it; give it as the storage's own client reads it")
        self._out = out
        try:
            # Of a file's URI fsspec takes %20 for a name.
            self._fs, self._root = fsspec.core.url_to_fs(unquote(uri) if uri.startswith("file://") else uri)
            self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(f"{self._root}/{_PROBE}", b"")
        except Exception as error:  # each protocol has its own exceptions
            raise InputError(f"--storage {uri} cannot be written to: {_reason(error)}") from error

    @property
    def uri(self) -> str:
        """The URI as it means the same in every working directory."""
        is_local = isinstance(self._fs, LocalFileSystem)
        return Path(self._root).as_uri() if is_local else str(self._fs.unstrip_protocol(self._root))

    def pull(self, name: str) -> None:
        """Fetch what is stored in a folder of `out` and not of the same size here; what says that it is whole last."""
        for stored, size in sorted(self._stored(name).items(), key=lambda item: item[0].endswith(LAST)):
            path = self._out / stored
            if not path.exists() or path.stat().st_size != size:
                self._get(stored)

    def push(self, name: str) -> None:
        """Store the files in a folder of `out`, where what is stored is of another size; in the same order."""
        stored = self._stored(name)
        for file in sorted(self._files(name), key=lambda file: file.endswith(LAST)):
            if stored.get(file) != (self._out / file).stat().st_size:
                self._put(file)

    def share(self, path: Path) -> None:
        """Store a file that other nodes may make too, unless one was before; then its file takes the place of ours.

        So all nodes go on with the same numbers, whatever hardware each has.
        """
        name = path.relative_to(self._out).as_posix()
        if name in self._stored(name):
            self._get(name)
        else:
            self._put(name)

    def pull_branch(self, branch_id: str, checked: bool = False) -> None:
        """Fetch of a stored branch what is not here and intact, its record last.

        checked: whether weights and embeddings that are here by this folder's record are read, too, gigabytes of a run
        """
        stored, folder = self._stored_record(branch_id), self._out / BRANCHES / branch_id
        if stored is None:
            return
        here = read_record(folder)
        for file, sha256 in stored.files.items():
            recorded = here is not None and here.files.get(file) == sha256 and (folder / file).exists()
            trusted = recorded and not checked and not file.startswith(f"{TABLES}/")
            if not trusted and not is_intact(folder, stored, file):
                self._get(f"{BRANCHES}/{branch_id}/{file}")
        if here is None or here.files != stored.files:
            write_record(folder, stored)

    def push_branch(self, branch_id: str) -> None:
        """Store of a branch what is not stored, its record last."""
        record, stored = read_record(self._out / BRANCHES / branch_id), self._stored_record(branch_id)
        if record is None or record == stored:
            return
        for file, sha256 in record.files.items():
            if stored is None or stored.files.get(file) != sha256:
                self._put(f"{BRANCHES}/{branch_id}/{file}")
        self._put(f"{BRANCHES}/{branch_id}/{RECORD}")

    def _stored_record(self, branch_id: str) -> Record | None:
        """The record of a stored branch; None if there is none or it is damaged."""
        try:
            return Record.model_validate_json(self.read(f"{BRANCHES}/{branch_id}/{RECORD}") or b"")
        except ValueError:
            return None

    def pull_run(self) -> None:
        """Fetch what an earlier driver has left: all but branches, and what is each node's."""
        stored = {name for name in self._stored("") if name.partition("/")[0] not in _LOCAL}
        if "mlflow.db" in stored:
            for journal in self._out.glob("mlflow.db-*"):  # of a database that is replaced
                journal.unlink()
        for name in sorted(stored, key=lambda name: name == ID):  # last: it says that all is here
            self._get(name)

    def push_run(self) -> None:
        """Store all but branches, which those who finished them have stored, and what is each node's."""
        for path in sorted(self._out.iterdir()):
            if path.name in _CONSTANT:
                self.push(path.name)
            elif path.name not in _LOCAL:
                for file in self._files(path.name):
                    self._put(file)
        if not (self._out / REPORT).exists() and self.read(REPORT) is not None:  # of results that were others
            with _reaching():
                self._fs.rm_file(f"{self._root}/{REPORT}")

    def read(self, name: str) -> bytes | None:
        """What is stored under a name, or None."""
        with _reaching():
            try:
                content: bytes = self._fs.cat_file(f"{self._root}/{name}")
            except FileNotFoundError:
                return None
        return content

    def write(self, name: str, content: bytes) -> None:
        """Store something small under a name."""
        with _reaching(), self._whole(f"{self._root}/{name}") as target:
            self._fs.pipe_file(target, content)

    def age(self, name: str) -> float:
        """Seconds since something was stored, by the storage's own clock."""
        self.write(_PROBE, b"")
        with _reaching():
            now, then = (self._fs.modified(f"{self._root}/{stored}") for stored in (_PROBE, name))
        return max(0.0, (now - then).total_seconds())

    @contextmanager
    def following(self, file: Path, seconds: float) -> Iterator[None]:
        """Fetch a file before the block, store its changes during it, and remove it when the block ends well."""
        name = file.relative_to(self._out).as_posix()
        if name in self._stored(name):
            self._get(name)
        seen = file.stat().st_mtime_ns if file.exists() else 0

        def follow() -> None:
            nonlocal seen
            if file.exists() and (now := file.stat().st_mtime_ns) != seen:
                self._put(name)
                seen = now

        with every(seconds, follow):
            yield
        try:
            if name in self._stored(name):
                self._fs.rm_file(f"{self._root}/{name}")
        except Exception as error:  # a checkpoint too many costs room, and nothing else
            log.warning("%s stays in the storage (%s)", name, _reason(error))

    def _files(self, name: str) -> list[str]:
        """A file of `out`, or those in a folder; lock files and what is half-written are each node's own."""
        path = self._out / name
        files = [file for file in (sorted(path.rglob("*")) if path.is_dir() else [path]) if file.is_file()]
        names = [file.relative_to(self._out) for file in files]
        return [n.as_posix() for n in names if not any(part.endswith((".lock", ".tmp")) for part in n.parts)]

    def _stored(self, name: str) -> dict[str, int]:
        """Sizes of the files that are stored under a name of `out`, by their own names."""
        target = f"{self._root}/{name}".rstrip("/")
        with _reaching():
            self._fs.invalidate_cache()
            entries = self._fs.find(target, detail=True)
        names = {path[len(self._root) :].lstrip("/"): entry["size"] for path, entry in entries.items()}
        return {name: size for name, size in names.items() if not name.endswith(".tmp")}  # else it is being written

    def _get(self, name: str) -> None:
        path = self._out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary, _reaching():
            self._fs.get_file(f"{self._root}/{name}", str(temporary))

    def _put(self, name: str) -> None:
        with _reaching(), self._whole(f"{self._root}/{name}") as target:
            self._fs.put_file(str(self._out / name), target)

    @contextmanager
    def _whole(self, target: str) -> Iterator[str]:
        """Where to write what shall appear under a path as a whole."""
        self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        if not isinstance(self._fs, LocalFileSystem):  # an object does
            yield target
            return
        with atomic(Path(target)) as temporary:
            yield str(temporary)


@contextmanager
def stored_run(storage: Storage, out: Path) -> Iterator[None]:
    """Fetch the stored run before the block, unless this folder has left it there itself, and store it after the block.

    Raises InputError if another driver is at work, or the folder has another run than the storage. Raises StorageAway
    if the storage cannot be reached before the block; after it that is a warning.
    """
    last = _last_driver(storage)
    elsewhere = last is not None and last["node"] != _node(out)
    if last is not None and elsewhere and last["at_work"] and (silent := storage.age(DRIVER)) < GONE_SECONDS:
        raise InputError(
            f"{storage.uri}: another run is writing there, on {last['host']}, {silent:.0f} s ago; "
            f"wait until it ends, or {GONE_SECONDS:.0f} s after it was killed, or give another --storage"
        )
    run = storage.read(ID)
    if run is not None and folder_id(out) not in ("", run.decode()):
        raise InputError(f"{out} has another run than {storage.uri}; give another --out or another --storage")
    # The signature comes after: a driver that is killed while it fetches fetches again.
    if run is not None and (elsewhere or not folder_id(out)):
        storage.pull_run()
    storage.write(ID, new_folder_id(out).encode())

    def sign(at_work: bool) -> None:
        signature = {"node": _node(out), "host": socket.gethostname(), "at_work": at_work}
        storage.write(DRIVER, json.dumps(signature).encode())

    sign(at_work=True)
    try:
        with every(BEAT_SECONDS, lambda: sign(at_work=True)):
            yield
    finally:
        try:
            storage.push_run()
            sign(at_work=False)
        except Exception as error:  # each protocol has its own; what the run says must not be lost for that
            log.warning("%s: not everything could be stored (%s); run again to do so", storage.uri, error)


def _last_driver(storage: Storage) -> dict[str, object] | None:
    """The last driver's signature: node, host and at_work; None before the first, and for a damaged one."""
    try:
        signature = json.loads(storage.read(DRIVER) or b"")
        return signature if signature.keys() >= {"node", "host", "at_work"} else None
    except (ValueError, AttributeError):
        return None


def _node(out: Path) -> str:
    """The token of an output folder, which other nodes' folders under the same path do not have."""
    path = out / NODE
    if not path.exists():
        path.write_text(uuid.uuid4().hex, encoding="utf-8")
    return path.read_text(encoding="utf-8")


@contextmanager
def every(seconds: float, action: Callable[[], object]) -> Iterator[None]:
    """Repeat something in a thread during the block; what fails now is done next time, and the block goes on."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(seconds):
            with suppress(OSError):
                action()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _reaching() -> Iterator[None]:
    """Whatever a storage's client raises, as one kind of error."""
    try:
        yield
    except Exception as error:
        raise StorageAway(f"--storage: {_reason(error)}; run again to go on") from error


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
