"""What a packaged ensemble consists of.

ensemble.json               this manifest
clips.parquet               the normal clips of the banks: machine, section, clip, split, domain, attributes
backbones/<digest>.pt       BEATs checkpoints, each once however many branches share it
branches/<branch_id>.pt     what training changed: adapters, layers, head; absent for a frozen branch
banks/<branch_id>[.<embedding>].npy   embeddings of the clips of clips.parquet, in its order: float32 (clips, …)
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from branches.audio.formats import Format
from branches.spec import PROJECTION, BranchSpec, EmbeddingSpec
from fusion.scales import Scale
from orchestrator.plan import embedding_name
from scoring.decisions import FALSE_ALARMS
from scoring.detectors import DetectorSpec
from scoring.errors import InputError

PACKAGE = Path("artifacts") / "ensemble"  # within an MLflow model
MANIFEST = "ensemble.json"
CLIPS = "clips.parquet"
REMEDY = "export the system again"


class Member(BaseModel):
    """One score table of the system: a branch's embeddings as one detector sees them, and its weight."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    branch_id: str
    name: str
    embedding: EmbeddingSpec = PROJECTION
    detector: DetectorSpec
    weight: float

    @property
    def branch_file(self) -> str:
        """Where its branch lies in the package, if that was trained."""
        return f"branches/{self.branch_id}.pt"

    @property
    def bank_file(self) -> str:
        """Where its bank lies in the package, which members may share that differ in their detectors."""
        return ".".join(filter(None, [f"banks/{self.branch_id}", embedding_name(self.embedding), "npy"]))


class Manifest(BaseModel):
    """A packaged ensemble; what it was made of stands in the MLflow model's metadata.

    scale: of the scores that the weights apply to
    branches: specs by branch_id; paths of backbones are those within the package
    formats: of the machines' clips, where they are known
    false_alarms: share of normal clips above a threshold
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: Scale
    members: tuple[Member, ...]
    branches: dict[str, BranchSpec]
    formats: dict[str, Format] = {}
    false_alarms: float = FALSE_ALARMS


def package_of(model: Path) -> Path:
    """Where the package lies in an MLflow model; a package that lies alone is its own place."""
    return model / PACKAGE if (model / PACKAGE).is_dir() else model


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the package in `folder`; `InputError` if there is none or it is damaged."""
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError:
        raise InputError(f"{folder}: no packaged ensemble; `tutti export` makes one") from None
    except ValidationError as error:
        reason = f"damaged, or of another version of tutti ({error.error_count()} errors)"
        raise InputError(f"{path}: {reason}; {REMEDY}") from None
