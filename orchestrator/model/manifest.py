"""What a packaged ensemble consists of.

ensemble.json               this manifest, with the SHA-256 of every other file
clips.parquet               the normal clips of the banks: machine, section, clip, split, domain, attributes
backbones/<digest>.pt       BEATs checkpoints, each once however many branches share it
branches/<branch_id>.pt     what training changed: adapters, layers, head; absent for a frozen branch
banks/<branch_id>[.<embedding>].npy   embeddings of the clips of clips.parquet, in its order: float32 (clips, …)
"""

from __future__ import annotations

import json
import logging
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from branches.audio.formats import Format
from branches.spec import PROJECTION, BranchSpec, EmbeddingSpec
from orchestrator.plan import embedding_name
from scoring.decisions import FALSE_ALARMS, Rule
from scoring.detectors import DetectorSpec
from scoring.errors import InputError
from scoring.table import file_sha256

log = logging.getLogger(__name__)

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
    def bank(self) -> str:
        """The name of its bank, which members may share that differ in their detectors."""
        return ".".join(filter(None, [self.branch_id, embedding_name(self.embedding)]))


class Manifest(BaseModel):
    """A packaged ensemble.

    scale: of the scores that the weights apply to, see `fusion.scales`
    branches: specs by branch_id; paths of backbones are those within the package
    formats: of the machines' clips, where they are known
    rule, false_alarms: of the thresholds, see `scoring.decisions`; false alarms as a share of normal clips
    enrolled: machines that were added afterwards, with the number of their clips
    files: SHA-256 by path within the package
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: str
    description: str
    dataset: str
    version: str
    scale: str
    members: tuple[Member, ...]
    branches: dict[str, BranchSpec]
    enrolled: dict[str, int] = {}
    formats: dict[str, Format] = {}
    rule: Rule = "gamma"
    false_alarms: float = FALSE_ALARMS
    files: dict[str, str]


def backbone_file(digest: str) -> str:
    """Where a backbone lies in a package."""
    return f"backbones/{digest[:16]}.pt"


def branch_file(branch_id: str) -> str:
    """Where a trained branch lies in a package."""
    return f"branches/{branch_id}.pt"


def bank_file(bank: str) -> str:
    """Where the embeddings of the normals lie in a package."""
    return f"banks/{bank}.npy"


def package_of(model: Path) -> Path:
    """Where the package lies in an MLflow model; a package that lies alone is its own place."""
    return model / PACKAGE if (model / PACKAGE).is_dir() else model


def warn_of_other_version(model: Path) -> None:
    """Tell if a model was made by another version of tutti than the one that is about to read it.

    A server has no need of this: it runs the code that came with the model.
    """
    try:
        made_by = json.loads((package_of(model) / MANIFEST).read_bytes())["version"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # `read_manifest` says what is wrong
    if made_by != version("tutti-asd"):
        log.warning(
            "%s: made by tutti %s, and this is tutti %s: scores may differ from those of the run; "
            "install that version, or %s",
            model, made_by, version("tutti-asd"), REMEDY,
        )  # fmt: skip


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the package in `folder`, every file of which is there and intact.

    Raises
    ------
    InputError
        If there is no package, or a file of it is missing or damaged.
    """
    path = folder / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except OSError:
        raise InputError(f"{folder}: no packaged ensemble; `tutti export` makes one") from None
    except ValidationError as error:
        raise InputError(
            f"{path}: damaged, or of another version of tutti ({error.error_count()} errors); {REMEDY}"
        ) from None
    for name, expected in manifest.files.items():
        try:
            intact = file_sha256(folder / name) == expected
        except OSError:
            raise InputError(f"{folder / name}: missing or unreadable; {REMEDY}") from None
        if not intact:
            raise InputError(f"{folder / name}: damaged, its checksum is not that of the manifest; {REMEDY}")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest with the checksums of the files that lie in `folder` now."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    checksums = {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
    (folder / MANIFEST).write_text(
        manifest.model_copy(update={"files": checksums}).model_dump_json(indent=1), encoding="utf-8"
    )
