"""Locks between processes, on file systems with `flock` and on those without: some NFS, Lustre without `-o flock`."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, SoftFileLease, Timeout

log = logging.getLogger(__name__)

_NO_FLOCK = frozenset([errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.EIO])
# Without flock a holder says that it lives by touching a file; one that is silent for so long has died.
LEASE_SECONDS = 60.0


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock at `path` during the block; a killed holder's is free, at once or without `flock` in a minute.

    wait: until it is free; else `TimeoutError` is raised if another process holds it

    Raises OSError if the lock's file cannot be written.
    """
    lock: FileLock | SoftFileLease = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
        # Of another name, since the file of the lock itself stays behind when that is released.
        lock = _lease(path.with_name(f"{path.name}.lease.lock"), wait)
    try:
        yield
    finally:
        lock.release()


def _lease(path: Path, wait: bool) -> SoftFileLease:
    """A lease at `path`; of a holder on another host it takes a while to see whether it lives."""
    lease = SoftFileLease(path, lease_duration=LEASE_SECONDS)
    try:
        lease.acquire(timeout=0)
    except Timeout:
        log.warning("%s: no flock on this file system; seeing for %.0f s whether its holder lives", path, LEASE_SECONDS)
        lease.acquire(timeout=-1 if wait else 1.5 * LEASE_SECONDS)
    return lease
