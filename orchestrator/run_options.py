"""Where a run reads, writes and computes, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunOptions:
    """What `tutti run` was asked for beside the systems.

    gpus_per_branch: None takes one where the cluster has GPUs
    storage: URI over which nodes without a common file system share what they make
    memory_per_branch: GiB; None gives a branch an equal share of a node's
    compiled: compile the encoders that are trained
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
    checkpoint_seconds: float = 600.0
    compiled: bool = False
    fuse_incomplete: bool = False
