"""What is looked at before anything is trained, so that a mistake costs seconds and not GPU hours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from branches.dataset import class_labels
from branches.spec import BackboneSpec
from orchestrator.plan import Branch
from orchestrator.spec import SystemSpec, with_backbones
from scoring.errors import InputError
from scoring.table import file_sha256

if TYPE_CHECKING:
    from branches.audio import AudioCache

# Torch is loaded inside the functions that need it: a finished run on a built-in backbone does not.
BUILT_IN = ("tiny",)


def with_resolved_backbones(system: SystemSpec) -> SystemSpec:
    """The system with every checkpoint as an absolute path and its whole digest.

    Raises
    ------
    InputError
        If a checkpoint is not there or is another than its digest says.
    """
    return with_backbones(system, resolve_backbone)


def resolve_backbone(spec: BackboneSpec) -> BackboneSpec:
    """One backbone's local file and digest; see `with_resolved_backbones`."""
    if spec.path in BUILT_IN:
        return spec
    from branches.beats.checkpoint import local_file

    try:
        file = Path(local_file(spec.path, spec.sha256))
    except InputError as error:
        raise InputError(f"{error} (--backbone FILE takes another one)") from None
    # Another node fetches a URI itself; a path must be the same everywhere.
    path = spec.path if "://" in spec.path else str(file.resolve())
    return BackboneSpec(path=path, sha256=file_sha256(file))


def check_models(branches: Sequence[Branch]) -> None:
    """Load each checkpoint once.

    Raises
    ------
    InputError
        If a file is no BEATs checkpoint.
    """
    from branches.beats import load_beats

    for backbone in dict.fromkeys(branch.spec.backbone for branch in branches):
        load_beats(backbone.path, sha256=backbone.sha256)


def notes_on(index: pa.Table, audio: AudioCache, branches: Sequence[Branch]) -> list[str]:
    """What a person should know about this data before the branches are trained on it."""
    notes = []
    train = index.filter(pa.compute.equal(index["split"], "train"))
    if len(class_labels(train)[1]) < 2:
        notes.append("all training clips are of one class: there is nothing to classify, embeddings stay untrained")
    mono = int((audio.channels == 1).sum())
    if mono and any(branch.spec.channel != "near" for branch in branches):
        notes.append(f"{mono} of {len(audio)} clips have one channel: near, far and mean are the same there")
    return notes
