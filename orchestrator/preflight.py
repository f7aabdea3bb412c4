"""What a run looks at before anything is trained, so that a mistake costs seconds and not GPU hours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from branches.checkpoint_files import file_digest, is_remote, local_file, stated_digest
from branches.data.dataset import class_labels
from branches.frames import n_frames
from branches.spec import BUILT_IN, LOG_MEL, BackboneSpec, FileSpec, PatchesSpec
from orchestrator.plan import Branch
from orchestrator.training.generated import nothing_rare
from orchestrator.training.process import check_installation
from scoring.errors import InputError
from scoring.settings import Settings

if TYPE_CHECKING:
    from branches.audio.cache import AudioCache

# Torch is loaded inside the functions that need it: a finished run on `tiny` does not.


def with_resolved_files(settings: Any, fetch: bool = True) -> Any:
    """A system, or a part of one, with all files of weights by absolute path and whole digest; see `resolve_file`."""
    match settings:
        case FileSpec():
            return resolve_file(settings, fetch)
        case Settings():
            return settings.model_copy(update={name: with_resolved_files(value, fetch) for name, value in settings})
        case dict():
            return {name: with_resolved_files(value, fetch) for name, value in settings.items()}
        case tuple():
            return tuple(with_resolved_files(value, fetch) for value in settings)
    return settings


def resolve_file(spec: FileSpec, fetch: bool = True) -> FileSpec:
    """One checkpoint's file and digest; `InputError` if it is not there, or is another than its digest says.

    fetch: whether what is not in the cache is fetched now if its whole digest is not known before
    """
    if spec.path in ("tiny", LOG_MEL) or spec.path.startswith("random:"):
        return spec
    if digest := stated_digest(spec.path, spec.sha256):
        return spec.model_copy(update={"sha256": digest})
    try:
        file = local_file(spec.path, spec.sha256, fetch)
    except InputError as error:
        remedy = " (--backbone FILE takes another one)" if isinstance(spec, BackboneSpec) else ""
        raise InputError(f"{error}{remedy}") from None
    # What is fetched has the same name everywhere; a path must be the same everywhere. A link stays one: beside what it
    # leads to in a cache of the Hub, `config.json` has another name.
    path = spec.path if spec.path in BUILT_IN or is_remote(spec.path) else str(file.absolute())
    return spec.model_copy(update={"path": path, "sha256": file_digest(file)})


def check_branches(branches: Sequence[Branch], noise: pa.Table) -> None:
    """Raise `InputError` if branches cannot be trained with these packages, checkpoints and noise clips."""
    check_installation()
    check_models(branches)
    if not noise.num_rows and "supplemental" in _noise_sources(branches):
        raise InputError(
            "augmentation.noise.source is supplemental, but no machine has supplemental/*noise*.wav; use far"
        )


def check_models(branches: Sequence[Branch]) -> None:
    """Load each checkpoint and tokenizer once; `InputError` if it is none, or lacks what a branch asks of it."""
    from branches.beats import load_tokenizer
    from branches.model import load_backbone

    for path, backbone in {b.spec.backbone.path: b.spec.backbone for b in branches}.items():
        model = load_backbone(backbone)
        for branch in [b for b in branches if b.spec.backbone.path == path]:
            taken = [e.layers for e in branch.embeddings if isinstance(e, PatchesSpec)]
            for layers in [branch.spec.backbone.layers, *taken]:
                model.layer_numbers(layers)
    masked = [b.spec.masked_prediction for b in branches if b.spec.masked_prediction is not None]
    for file in {file for spec in masked for file in spec.tokenizers}:
        load_tokenizer(file.path, file.sha256)


def check_lengths(index: pa.Table, audio: AudioCache, branches: Sequence[Branch]) -> None:
    """Raise `InputError`, naming the longest clip, if a branch's network cannot hold its attention in memory."""
    from branches.beats import load_beats
    from branches.beats.memory import LONG_CLIP, check_attention_memory

    longest = int(audio.lengths.argmax())
    frames = n_frames(int(audio.lengths[longest]))
    networks = [b.spec.backbone for b in branches if b.spec.backbone.path != LOG_MEL and frames > LONG_CLIP]
    for path, sha256 in {(backbone.path, backbone.sha256) for backbone in networks}:
        try:
            check_attention_memory(load_beats(path, sha256=sha256).config.encoder_attention_heads, frames)
        except InputError as error:
            raise InputError(f"{index['path'][longest]}: {error}") from None


def notes_on(index: pa.Table, audio: AudioCache, branches: Sequence[Branch]) -> list[str]:
    """What a person should know about this data before the branches are trained on it."""
    notes = []
    train = index.filter(pc.equal(index["split"], "train"))
    learning = [b for b in branches if not b.spec.is_frozen and not b.spec.classes.pseudo_labels]
    if learning and len(class_labels(train)[1]) < 2:
        notes.append(
            "all training clips are of one class: there is nothing to classify, and embeddings stay untrained "
            "(classes.pseudo_labels divides them)"
        )
    if nothing_rare(branches, index):
        notes.append("no operating state is rare: nothing is generated, and branches train on recorded clips alone")
    mono = int((audio.channels == 1).sum())
    if mono and ("far" in _noise_sources(branches) or any(branch.spec.channel != "near" for branch in branches)):
        notes.append(
            f"{mono} of {len(audio)} clips have one channel: near, far, mean and cancel are the same there, and none "
            "of their noise is mixed into others"
        )
    return notes


def _noise_sources(branches: Sequence[Branch]) -> set[str]:
    return {b.spec.augmentation.noise.source for b in branches if b.spec.augmentation.noise is not None}
