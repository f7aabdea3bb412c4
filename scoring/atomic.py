"""Files that are there as a whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the place of `path` at the end of the block.

    If the block raises, `path` stays as it was and the temporary file is removed. A kill leaves a file that begins
    with a dot and ends in `.tmp`, which nothing reads.
    """
    # Of its own for each writer: two processes may write the same file at once, and the last one stays.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
