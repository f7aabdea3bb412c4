"""Work on threads ahead of the one that needs it, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def prefetched(work: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """`work` of each item in turn, of the next `workers` meanwhile; no more results than that are kept.

    NumPy, SciPy and soundfile let other threads work while they compute and read.
    """
    left = iter(items)
    with ThreadPoolExecutor(workers) as threads:
        pending = deque(threads.submit(work, item) for item in islice(left, workers))
        while pending:
            result = pending.popleft().result()
            pending.extend(threads.submit(work, item) for item in islice(left, 1))
            yield result
