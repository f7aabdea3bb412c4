"""What a packaged ensemble consists of.

ensemble.json               this manifest
normals/<number>.npz        the normals of a machine and section: names, what is fitted to them, cross-fitted distances
backbones/<digest>/         BEATs checkpoints, each once however many branches share it; of safetensors with config.json
branches/<branch_id>.pt     what training changed: adapters, layers, head; absent for a frozen branch
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from branches.audio.formats import Format
from branches.spec import EMBEDDING_VERSION, PROJECTION, BranchSpec, EmbeddingSpec
from fusion.scales import Scale
from orchestrator.plan import embedding_name
from scoring.decisions import FALSE_ALARMS
from scoring.detectors import SCORING_VERSION, DetectorSpec
from scoring.errors import InputError

PACKAGE = Path("artifacts") / "ensemble"  # within an MLflow model
MANIFEST = "ensemble.json"
REMEDY = "export the system again"
VERSIONS = EMBEDDING_VERSION, SCORING_VERSION


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
    def source(self) -> str:
        """Names its embeddings, which members may share that differ in their detectors."""
        return ".".join(filter(None, [self.branch_id, embedding_name(self.embedding)]))


class Normals(BaseModel):
    """The normals of a machine and section.

    file: where they lie in the package
    format: of the machine's clips, if it is known
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    machine: str
    section: int
    file: str
    format: Format | None = None


class Manifest(BaseModel):
    """A packaged ensemble; what it was made of stands in the MLflow model's metadata.

    versions: of embeddings and scoring, which what is fitted goes with
    scale: of the scores that the weights apply to
    branches: specs by branch_id; paths of backbones are those within the package
    false_alarms: share of normal clips above a threshold
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    versions: tuple[int, int] = VERSIONS
    scale: Scale
    members: tuple[Member, ...]
    branches: dict[str, BranchSpec]
    normals: tuple[Normals, ...]
    false_alarms: float = FALSE_ALARMS


def package_of(model: Path) -> Path:
    """Where the package lies in an MLflow model; a package that lies alone is its own place."""
    return model / PACKAGE if (model / PACKAGE).is_dir() else model


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the package in `folder`; `InputError` if there is none or it is damaged."""
    path = folder / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except OSError:
        raise InputError(f"{folder}: no packaged ensemble; `tutti export` makes one") from None
    except ValidationError:
        raise InputError(f"{path}: damaged, or of another version of tutti; {REMEDY}") from None
    if manifest.versions != VERSIONS:
        raise InputError(f"{path}: another version of tutti has fitted it; {REMEDY}")
    return manifest
