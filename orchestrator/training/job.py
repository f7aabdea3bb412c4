"""What a run was asked for, and what all of its branches share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from branches.spec import EMBEDDING_VERSION, FrozenInput
from cluster.capacity import GIB

# Called with what is being trained, the steps done, all its steps, and the mean loss since the last call.
StageReport = Callable[[str, int, int, float], None]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What `tutti run` was asked for beside the systems.

    out: the run's folder, with the ledger
    storage: URI over which nodes without a common file system share what they make; None where they have one
    cpus_per_branch: threads; sums over threads differ in their last bits, so it is part of what is asked for
    gpus_per_branch: may be a fraction; None takes one where the cluster has GPUs, 0 computes on the CPU
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


@dataclass(frozen=True, kw_only=True)
class Job(RunOptions):
    """What all branches of a run share; paths are absolute, since Tune changes the working directory.

    fingerprint, training: of all clips, and of the training clips
    noise: rows of the supplemental noise clips
    versions: the driver's; a worker with others would make other numbers under the same id
    frozen: what the run's branches need of frozen backbones, since it is computed for all of them at once
    """

    fingerprint: str
    training: str
    noise: pa.Table
    versions: list[int | str]
    frozen: tuple[FrozenInput, ...]

    @property
    def device(self) -> str:
        """`cpu` or `cuda`."""
        return "cuda" if self.gpus_per_branch else "cpu"

    @property
    def resources(self) -> dict[str, float]:
        """What is asked of Ray for a branch, memory in bytes."""
        asked = {
            "CPU": float(self.cpus_per_branch),
            "GPU": float(self.gpus_per_branch or 0),
            "memory": GIB * (self.memory_per_branch or 0.0),
        }
        return {name: value for name, value in asked.items() if value}

    @property
    def cache(self) -> Path:
        """What is computed from the data set's clips once for all branches."""
        return self.out / "cache" / self.fingerprint[:16]

    @property
    def decoded(self) -> Path:
        """The decoded clips."""
        return self.cache / f"clips-{EMBEDDING_VERSION}"

    @property
    def decoded_noise(self) -> Path:
        """The decoded noise clips of `supplemental` folders."""
        return self.cache / f"noise-{EMBEDDING_VERSION}"

    @property
    def derived(self) -> Path:
        """The cancelled channel, and embeddings of frozen backbones."""
        return self.cache / f"derived-{EMBEDDING_VERSION}"

    @property
    def backbones(self) -> Path:
        """Checkpoints that the driver has fetched, for nodes without network; not there on a single machine."""
        return self.cache / "backbones"

    @property
    def generated(self) -> Path:
        """Sets of generated clips."""
        return self.out / "generated"

    @property
    def checkpoints(self) -> Path:
        """Resumable checkpoints of branches and generators in training."""
        return self.out / "checkpoints"
