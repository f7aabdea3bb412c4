"""What all branches of a run share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from branches.spec import EMBEDDING_VERSION, FrozenInput
from cluster.capacity import GIB

# Called with what is being trained, the steps done, all its steps, and the mean loss since the last call.
StageReport = Callable[[str, int, int, float], None]


@dataclass(frozen=True)
class Job:
    """What all branches of a run share; paths are absolute, since Tune changes the working directory.

    out: the run's folder, with the ledger
    fingerprint, training: of all clips, and of the training clips
    noise: rows of the supplemental noise clips
    threads: CPU threads of a branch; sums over threads differ in their last bits, so it is part of the job
    gpus: of a branch, may be a fraction; 0 computes on the CPU
    memory: of a branch, GiB; None is its share of a node
    versions: the driver's; a worker with others would make other numbers under the same id
    frozen: what the run's branches need of frozen backbones, since it is computed for all of them at once
    compiled: compile the encoders that are trained
    storage: URI over which nodes without a common file system share what they make; None where they have one
    """

    data: Path
    out: Path
    fingerprint: str
    training: str
    noise: pa.Table
    threads: int
    gpus: float
    memory: float | None
    checkpoint_seconds: float
    versions: list[int | str]
    frozen: tuple[FrozenInput, ...]
    compiled: bool = False
    storage: str | None = None

    @property
    def device(self) -> str:
        """`cpu` or `cuda`."""
        return "cuda" if self.gpus else "cpu"

    @property
    def resources(self) -> dict[str, float]:
        """What is asked of Ray for a branch, memory in bytes."""
        asked = {"CPU": float(self.threads), "GPU": float(self.gpus), "memory": GIB * (self.memory or 0.0)}
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
    def generated(self) -> Path:
        """Sets of generated clips."""
        return self.out / "generated"

    @property
    def checkpoints(self) -> Path:
        """Resumable checkpoints of branches and generators in training."""
        return self.out / "checkpoints"
