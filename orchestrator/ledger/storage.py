"""Storage for nodes that share no file system: what one node makes, another fetches, over any URI that fsspec knows.

Each node has an output folder of its own under the same path. The storage has the same layout. A folder that must be
whole has one file that is written last and without which it is not there: a branch its record, a set of generated
clips its check.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import fsspec  # type: ignore[import-untyped]
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from orchestrator.ledger.folders import (
    BRANCHES,
    FAILURES,
    GIVEN_UP,
    RECORD,
    UNFINISHED,
    Record,
    is_intact,
    new_folder,
    read_record,
)
from scoring.atomic import atomic
from scoring.errors import InputError

log = logging.getLogger(__name__)

NODE, DRIVER = ".node", ".driver"  # see orchestrator/ledger/lease.py
_PROBE = ".writable"
# Of one node or of the storage itself, or stored as they are made.
_LOCAL = ("cache", "checkpoints", UNFINISHED, ".lock", BRANCHES, NODE, DRIVER, _PROBE)
_CONSTANT = ("data", "mlartifacts")  # whose files do not change
_PASSING = (FAILURES, GIVEN_UP)  # which may be gone later


class StorageAway(RuntimeError):
    """The storage cannot be reached, or refuses; another try may succeed."""


class Storage:
    """The storage at a URI, and an output folder on this node.

    Raises
    ------
    InputError
        If it cannot be written to, or a package for it is missing.
    """

    def __init__(self, uri: str, out: Path) -> None:
        if urlsplit(uri).password:  # it would be in logs and in the list of processes
            raise InputError("--storage has a password in it; give it as the storage's own client reads it")
        self._out = out
        try:
            self._fs, self._root = fsspec.core.url_to_fs(uri)
            self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(f"{self._root}/{_PROBE}", b"")
        except Exception as error:  # each protocol has its own exceptions
            raise InputError(f"--storage {uri} cannot be written to: {_reason(error)}") from error

    @property
    def uri(self) -> str:
        """The URI as it means the same in every working directory."""
        return str(self._fs.unstrip_protocol(self._root))

    def pull(self, name: str) -> None:
        """Fetch what is stored in a folder of `out` and not of the same size here."""
        for stored, size in self._stored(name).items():
            path = self._out / stored
            if not path.exists() or path.stat().st_size != size:
                self._get(stored, path)

    def push(self, name: str) -> None:
        """Store the files in a folder of `out`, where what is stored is of another size."""
        stored = self._stored(name)
        for path in _files(self._out / name):
            relative = path.relative_to(self._out).as_posix()
            if stored.get(relative) != path.stat().st_size:
                self._put(path, relative)

    def share(self, path: Path) -> None:
        """Store a file that other nodes may make too, unless one was before; then its file takes the place of ours.

        So all nodes go on with the same numbers, whatever hardware each has.
        """
        name = path.relative_to(self._out).as_posix()
        if name in self._stored(name):
            self._get(name, path)
        else:
            self._put(path, name)

    def pull_run(self) -> None:
        """Fetch what an earlier driver has left: all but branches, and what is each node's."""
        stored = {name for name in self._stored("") if name.partition("/")[0] not in _LOCAL}
        for passing in _PASSING:
            shutil.rmtree(self._out / passing, ignore_errors=True)
        if "mlflow.db" in stored:
            for journal in self._out.glob("mlflow.db-*"):  # of a database that is replaced
                journal.unlink()
        for name in sorted(stored, key=lambda name: name == ".id"):  # last: it says that all is here
            self._get(name, self._out / name)

    def push_run(self) -> None:
        """Store all but branches, which those who finished them have stored, and what is each node's."""
        for path in sorted(self._out.iterdir()):
            if path.name in _CONSTANT:
                self.push(path.name)
            elif path.name not in _LOCAL:
                for file in _files(path):
                    self._put(file, file.relative_to(self._out).as_posix())
        for name in [name for passing in _PASSING for name in self._stored(passing)]:
            if not (self._out / name).exists():
                with _reaching():
                    self._fs.rm_file(f"{self._root}/{name}")

    def read(self, name: str) -> bytes | None:
        """What is stored under a name, or None."""
        if name not in self._stored(name):
            return None
        with _reaching():
            content: bytes = self._fs.cat_file(f"{self._root}/{name}")
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

    def branches(self) -> set[str]:
        """Ids of the branches that are stored."""
        return {Path(name).parent.name for name in self._stored(BRANCHES) if name.endswith(f"/{RECORD}")}

    def pull_branch(self, branch_id: str) -> None:
        """Fetch a finished branch, unless it is here and intact."""
        prefix, local = f"{BRANCHES}/{branch_id}", self._out / BRANCHES / branch_id
        if f"{prefix}/{RECORD}" not in self._stored(prefix):
            return
        with _reaching():
            stored = Record.model_validate_json(self._fs.cat_file(f"{self._root}/{prefix}/{RECORD}"))
        record = read_record(local)
        if record is None or record.files != stored.files or not all(is_intact(local, record, f) for f in record.files):
            self._pull_folder(BRANCHES, branch_id, [*stored.files, RECORD])

    def push_branch(self, branch_id: str) -> None:
        """Store a finished branch."""
        self.push_folder(BRANCHES, branch_id, RECORD)

    def pull_folder(self, kind: str, name: str, last: str) -> None:
        """Fetch the folder `kind/name`, unless it is here or not stored as a whole."""
        prefix = f"{kind}/{name}"
        stored = self._stored(prefix)
        if f"{prefix}/{last}" in stored and not (self._out / prefix).exists():
            self._pull_folder(kind, name, [file.removeprefix(f"{prefix}/") for file in stored])

    def push_folder(self, kind: str, name: str, last: str) -> None:
        """Store the folder `kind/name`, the file called `last` as the last one."""
        for path in sorted(_files(self._out / kind / name), key=lambda path: path.name == last):
            self._put(path, path.relative_to(self._out).as_posix())

    def _pull_folder(self, kind: str, name: str, files: list[str]) -> None:
        with new_folder(self._out, kind, name) as folder:
            for file in files:
                self._get(f"{kind}/{name}/{file}", folder / file)

    @contextmanager
    def following(self, file: Path, seconds: float) -> Iterator[None]:
        """Fetch a file before the block, store its changes during it, and remove it when the block ends well."""
        name = file.relative_to(self._out).as_posix()
        if name in self._stored(name):
            self._get(name, file)
        seen = file.stat().st_mtime_ns if file.exists() else 0

        def follow() -> None:
            nonlocal seen
            if file.exists() and (now := file.stat().st_mtime_ns) != seen:
                self._put(file, name)
                seen = now

        with every(seconds, follow):
            yield
        try:
            if name in self._stored(name):
                self._fs.rm_file(f"{self._root}/{name}")
        except Exception as error:  # a checkpoint too many costs room, and nothing else
            log.warning("%s stays in the storage (%s)", name, _reason(error))

    def _stored(self, name: str) -> dict[str, int]:
        """Sizes of the files that are stored under a name of `out`, by their own names."""
        target = f"{self._root}/{name}".rstrip("/")
        with _reaching():
            self._fs.invalidate_cache()
            entries = self._fs.find(target, detail=True)
        names = {path[len(self._root) :].lstrip("/"): entry["size"] for path, entry in entries.items()}
        return {name: size for name, size in names.items() if not name.endswith(".tmp")}  # else it is being written

    def _get(self, name: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary, _reaching():
            self._fs.get_file(f"{self._root}/{name}", str(temporary))

    def _put(self, path: Path, name: str) -> None:
        with _reaching(), self._whole(f"{self._root}/{name}") as target:
            self._fs.put_file(str(path), target)

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
def every(seconds: float, action: Callable[[], None]) -> Iterator[None]:
    """Repeat something with a storage during the block; what fails now is done next time, and the block goes on."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(seconds):
            with suppress(OSError, StorageAway):
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


def _files(path: Path) -> list[Path]:
    """A file, or the files in a folder; lock files and what is half-written are each node's own."""
    paths = sorted(path.rglob("*")) if path.is_dir() else [path]
    node_local = (".lock", ".tmp")
    return [
        f for f in paths if f.is_file() and not any(p.endswith(node_local) for p in f.relative_to(path.parent).parts)
    ]
