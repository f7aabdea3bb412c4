"""The small system that tests of packaged ensembles export, and what its run left."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.model.manifest import MANIFEST, package_of
from scoring.table import read_table

BACKBONE = Path(__file__).parents[2] / "branches" / "fixtures" / "pretrained.pt"

# Every strategy that is stored in another way, two detectors on one branch, a backbone in a
# file, one that is built in, log-mels without a network, and a channel that is computed from two.
SYSTEM = """
name: mixed
branch:
  backbone: {path: pretrained.pt}
  embedding_dim: 8
  pooling: band_mean
  objective: softmax
  training: {steps: 8, batch_size: 8, crop_seconds: 0.8, learning_rate: 1.0e-3, warmup_steps: 2}
subsystems:
  trained:
    full: {}
    lora: {branch: {strategy: {name: lora, rank: 4}}, detector: {name: knn, k: 2}}
  neighbours:
    full: {detector: knn}
  patches:
    lora:
      branch: {strategy: {name: lora, rank: 4}}
      embedding: {pooling: {name: relative_deviation, gamma: 4}}
      detector: {name: band_knn}
    full: {embedding: {layers: [1, -1], pooling: mean}}
    frozen: {branch: {strategy: frozen, channel: cancel}, embedding: {pooling: band_statistics}}
  frozen:
    mean: {branch: {strategy: frozen, pooling: mean}}
    cancelled: {branch: {strategy: frozen, channel: cancel}, detector: {name: band_knn}}
    built_in: {branch: {strategy: frozen, backbone: {path: tiny}, pooling: band_statistics}}
    log_mel: {branch: {strategy: frozen, backbone: {path: log_mel}, pooling: band_statistics}}
"""


@dataclass(frozen=True)
class Run:
    """A folder with a data set, what a run made of it, and the exported model."""

    folder: Path

    @property
    def data(self) -> Path:
        """The data set."""
        return self.folder / "data"

    @property
    def backbone(self) -> Path:
        """The checkpoint that most branches share."""
        return self.folder / "pretrained.pt"

    @property
    def out(self) -> Path:
        """The run's folder."""
        return self.folder / "out"

    @property
    def model(self) -> Path:
        """The exported model."""
        return self.folder / "model"

    def clips(self, machine: str, split: str = "test") -> list[Path]:
        """Recordings of a machine in the order of the score tables."""
        return sorted((self.data / machine / split).iterdir())

    def fused(self, machine: str) -> pa.Table:
        """The run's scores of a machine's test clips."""
        table = read_table(self.out / "systems" / "mixed" / "fused.parquet")
        return table.filter((pc.field("machine") == machine) & (pc.field("split") == "test"))


def manifest_of(model: Path) -> dict[str, Any]:
    """The manifest as it stands in the file."""
    content: dict[str, Any] = json.loads((package_of(model) / MANIFEST).read_text())
    return content


def contributions(scores: pa.Table) -> NDArray[np.float64]:
    """What each member contributes to the scores of m clips: (members, m)."""
    return np.array([[part["contribution"] for part in parts] for parts in scores["contributions"].to_pylist()]).T
