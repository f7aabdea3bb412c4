"""Storage for nodes that share no file system: what one node makes, another fetches, over any URI that fsspec knows.

Each node has an output folder of its own under the same path. The storage has the same layout; a branch's record is
written there last, so that a branch is there as a whole or not at all.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import fsspec  # type: ignore[import-untyped]

from orchestrator.ledger import BRANCHES, RECORD, UNFINISHED, Record, is_intact, new_folder, read_record
from scoring.errors import InputError

# Of one node, or too large and made by whoever needs it.
_LOCAL = ("cache", "checkpoints", UNFINISHED, ".lock")


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
            self._fs.pipe_file(f"{self._root}/.writable", b"")
        except Exception as error:  # each protocol has its own exceptions
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"--storage {uri} cannot be written to: {reason}") from error

    def pull(self, *names: str) -> None:
        """Fetch what is stored under these names, files or folders of `out`, and not of the same size here."""
        for name in names:
            for stored, size in self._stored(name).items():
                path = self._out / stored
                if not path.exists() or path.stat().st_size != size:
                    self._get(stored, path)

    def push(self, *names: str) -> None:
        """Store files and folders of `out`, where what is stored is of another size."""
        for name in names:
            stored = self._stored(name)
            for path in _files(self._out / name):
                relative = path.relative_to(self._out).as_posix()
                if stored.get(relative) != path.stat().st_size:
                    self._put(path, relative)

    def pull_run(self) -> None:
        """Fetch what an earlier driver has left, unless this node has it: all but branches, and what is each node's."""
        if not (self._out / ".id").exists():
            names = {stored.partition("/")[0] for stored in self._stored("")}
            self.pull(*sorted(names - {*_LOCAL, BRANCHES, ".writable"}))

    def push_run(self) -> None:
        """Store all but branches, which those who finished them have stored, and what is each node's."""
        for path in sorted(self._out.iterdir()):
            if path.name not in (*_LOCAL, BRANCHES):
                for file in _files(path):
                    self._put(file, file.relative_to(self._out).as_posix())

    def pull_branch(self, branch_id: str) -> None:
        """Fetch a finished branch, unless it is here and intact."""
        place, local = f"{BRANCHES}/{branch_id}", self._out / BRANCHES / branch_id
        stored = self._stored(place)
        if f"{place}/{RECORD}" not in stored:
            return
        record = Record.model_validate_json(self._fs.cat_file(f"{self._root}/{place}/{RECORD}"))
        if read_record(local) == record and all(is_intact(local, record, file) for file in record.files):
            return
        with new_folder(self._out, BRANCHES, branch_id) as folder:
            for name in [*record.files, RECORD]:
                self._get(f"{place}/{name}", folder / name)

    def push_branch(self, branch_id: str) -> None:
        """Store a finished branch."""
        local = self._out / BRANCHES / branch_id
        for path in sorted(_files(local), key=lambda path: path.name == RECORD):
            self._put(path, path.relative_to(self._out).as_posix())

    def branches(self) -> set[str]:
        """Ids of the branches that are stored."""
        return {Path(name).parent.name for name in self._stored(BRANCHES) if name.endswith(f"/{RECORD}")}

    @contextmanager
    def following(self, file: Path, seconds: float) -> Iterator[None]:
        """Fetch a file before the block, store its changes during it, and remove it after it."""
        name = file.relative_to(self._out).as_posix()
        if name in self._stored(name):
            self._get(name, file)
        ended = threading.Event()
        known = file.stat().st_mtime_ns if file.exists() else 0

        def follow() -> None:
            seen = known
            while not ended.wait(seconds):
                # What cannot be stored now is stored next time; the training must not end for that.
                with suppress(OSError):
                    if file.exists() and file.stat().st_mtime_ns != seen:
                        seen = file.stat().st_mtime_ns
                        self._put(file, name)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
        if name in self._stored(name):
            self._fs.rm_file(f"{self._root}/{name}")

    def _stored(self, name: str) -> dict[str, int]:
        """Sizes of the files that are stored under a name of `out`, by their own names."""
        self._fs.invalidate_cache()
        place = f"{self._root}/{name}".rstrip("/")
        found = self._fs.find(place, detail=True)
        return {path[len(self._root) :].lstrip("/"): entry["size"] for path, entry in found.items()}

    def _get(self, name: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            self._fs.get_file(f"{self._root}/{name}", str(temporary))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _put(self, path: Path, name: str) -> None:
        self._fs.makedirs(f"{self._root}/{name}".rpartition("/")[0], exist_ok=True)
        self._fs.put_file(str(path), f"{self._root}/{name}")


def _files(path: Path) -> list[Path]:
    """A file, or the files in a folder; lock files and half-written ones are each node's own."""
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [file for file in found if file.is_file() and file.suffix not in (".lock", ".tmp", ".part")]
