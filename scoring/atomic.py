"""Files and folders that are there as a whole or not at all: written under a temporary name, then renamed.

This holds after a power cut, too: the content reaches the disk before the name does.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scoring.errors import naming


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the place of `path` at the end of the block.

    If the block raises, `path` stays as it was and the temporary file is removed. A kill leaves a file that begins
    with a dot and ends in `.tmp`, which nothing reads.
    """
    temporary = _beside(path)
    with naming(path, temporary):
        try:
            yield temporary
            _flush(temporary)
            os.replace(temporary, path)
            _flush_names(path.parent)
        finally:
            with suppress(OSError):
                temporary.unlink()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path` to fill; it becomes `path` at the end of the block, in place of what was there.

    If the block raises, `path` stays as it was and the new folder is removed. A kill leaves folders that begin with a
    dot and end in `.tmp`; no moment is without a whole one, the old or the new, under its own name or such a one.
    """
    new = _beside(path)
    with naming(path, new):
        new.mkdir(parents=True)
        try:
            yield new
            for part in new.rglob("*"):
                (_flush_names if part.is_dir() else _flush)(part)
            _flush_names(new)
            while not _exchanged(path, new):
                pass
            _flush_names(path.parent)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _exchanged(path: Path, new: Path) -> bool:
    """Put a new folder in the place of the old one; False if another writer's has meanwhile come there."""
    old = _beside(path)
    with suppress(FileNotFoundError):
        os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        with suppress(FileNotFoundError):
            os.replace(old, path)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
    return True


def link_or_copy(source: Path, target: Path) -> None:
    """The same file under a second name, which takes no room; a copy where the file system has no links or is another.

    For files that are replaced and never written to again.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _beside(path: Path) -> Path:
    """A temporary name of its own for each writer: two processes may write the same path, and the last one stays."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def _flush(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_names(folder: Path) -> None:
    with suppress(OSError):  # some file systems cannot; what is renamed is in its place all the same
        _flush(folder)
