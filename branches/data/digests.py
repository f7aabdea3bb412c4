"""Digests of recordings, by which a data set is known again; those of unchanged files are kept in a table.

Three blocks of each of a hundred thousand files take a disk or a network minutes; their sizes and times, seconds.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from branches.audio.containers import opened
from scoring.atomic import atomic

_SETTLED = 2e9  # ns: a file that was changed within the last tick of a file system's clock may change unseen
_FORM = "1"  # of the table and of a digest


def digests_of(root: Path, paths: Sequence[str], table: Path | None = None, write: bool = False) -> list[str]:
    """The digest of each recording; `InputError` names one that cannot be read.

    Parameters
    ----------
    paths: relative to `root`
    table: holds digests of earlier calls; one is taken where path, size, time of change and inode are the same
    write: whether to renew the table; it stays as it is where nothing can be written
    """
    metadata = {b"root": os.fsencode(root.resolve()), b"form": _FORM.encode()}
    earlier = _read(table, metadata) if table else {}
    settled = time.time_ns() - _SETTLED
    digests, lasting = [], {}
    for path in paths:
        state, changed = _state(f"{root}/{path}", path)
        digest = earlier.get(state) or _digest(root, path)
        digests.append(digest)
        if changed < settled:
            lasting[state] = digest
    if table and write and lasting != earlier:
        with suppress(OSError):
            table.parent.mkdir(parents=True, exist_ok=True)
            with atomic(table) as temporary:
                pq.write_table(
                    pa.table({"state": [*lasting], "digest": [*lasting.values()]}).replace_schema_metadata(metadata),
                    temporary,
                )
    return digests


def _read(table: Path, metadata: dict[bytes, bytes]) -> dict[str, str]:
    """Digests by the states of their files; none if there are none, or they are of another folder."""
    with suppress(OSError, pa.ArrowException, KeyError):
        kept = pq.ParquetFile(table).read()
        if (kept.schema.metadata or {}) == metadata:
            return dict(zip(kept["state"].to_pylist(), kept["digest"].to_pylist(), strict=True))
    return {}


def _state(file: str, path: str) -> tuple[str, int]:
    """What changes with a file, and when it was changed in ns; nothing is known of one that cannot be looked at."""
    with suppress(OSError):
        status = os.stat(file)
        return f"{path} {status.st_size} {status.st_mtime_ns} {status.st_ino}", status.st_mtime_ns
    return "", time.time_ns()


def _digest(root: Path, path: str) -> str:
    """16 hex digits of a hash of a clip's path, size and three blocks of 4 KiB.

    Reading 9 GB to name a data set would take longer than planning the run. A recording that is replaced
    changes these blocks; an edit between them that keeps the size goes unnoticed.
    """
    digest = hashlib.sha256()
    with opened(root / path) as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(f"{path}\0{size}\0".encode())
        for start in sorted({0, size // 2, max(0, size - 4096)}):
            digest.update(os.pread(file.fileno(), 4096, start))
    return digest.hexdigest()[:16]
