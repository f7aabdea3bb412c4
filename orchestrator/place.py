"""Where a run reads, writes and computes."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.session import session


@dataclass(frozen=True)
class Place:
    """Where a run reads, writes and computes.

    gpus_per_branch: None takes one where the cluster has GPUs
    storage: URI over which nodes without a common file system share what they make
    memory_per_branch: GiB; None gives a branch its share of a node, and later ones what the first have needed
    stop_hopeless: give up branches that learn nothing, and fuse without them
    fuse_incomplete: fuse the branches that are finished where others failed
    """

    data: Path
    out: Path
    address: str = "local"
    tracking_uri: str | None = None
    storage: str | None = None
    cpus_per_branch: int = 1
    gpus_per_branch: float | None = None
    memory_per_branch: float | None = None
    checkpoint_seconds: float = 60.0
    stop_hopeless: bool = False
    fuse_incomplete: bool = False


class Cluster:
    """The Ray session of a run, opened when something first needs it: a finished run needs none."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._stack = ExitStack()
        self._open = False

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def connect(self) -> None:
        """Open the session, unless it is open."""
        if not self._open:
            self._stack.enter_context(session(self._address))
            self._open = True

    def fusion_runner(self, *work: Any) -> Any:
        """The runner of fusion searches on this cluster."""
        self.connect()
        from fusion.job import run_on_ray

        return run_on_ray(*work)
