"""What a branch costs, roughly, and times for people."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from branches.checkpoint_files import file_digest, local_file
from branches.spec import LOG_MEL, BranchSpec, EmbeddingSpec, FileSpec, GeneratorSpec, PatchesSpec
from scoring.errors import InputError

# Floating-point operations per parameter and patch: a forward pass has 2, gradients of the activations cost 2 more,
# and those of the weights another 2. Of `partial` the dearest case is assumed.
FLOP_PER_PARAMETER = {"frozen": 0, "head": 2, "partial": 6, "lora": 4, "full": 6}
PATCHES_PER_SECOND = 50  # 100 frames of 10 ms, 16 × 16 patches of 128 mels
TOKENS_PER_SECOND = 25  # of a generator, four frames each
# Of the networks that come with tutti; with them nothing has to load torch.
_BUILT_IN = {"tiny": 86_120, "small": 662_068, LOG_MEL: 0}
# Of a checkpoint that is not here yet: OpenBEATs-Large, or all others that are published.
_LARGE, _BASE = 317_000_000, 90_000_000
# Share of the parameters that a branch keeps in a file of its own, about; of `lora` with its default settings.
KEPT_PARAMETERS = {"frozen": 0.0, "head": 0.0, "partial": 0.35, "lora": 0.08, "full": 1.0}
WIDTH, BANDS = 768, 8  # of patches of BEATs base
ASSUMED_TFLOPS = 100  # sustained in bf16 by a data-centre GPU at a fraction of its peak
CLIP_SECONDS = 10.0
# GFLOP/s of one CPU core for networks of up to so many parameters, twice `tiny` and `small`, measured while these and
# BEATs base train on 2 s: small ones mostly wait for memory.
CORE_GFLOPS = {172_000: 3, 1_320_000: 14, 10**12: 55}


def core_gflops(spec: BranchSpec | GeneratorSpec) -> float:
    """GFLOP/s of one CPU core that trains a network of this size."""
    return next(speed for size, speed in CORE_GFLOPS.items() if _parameters(spec) <= size)


def _parameters(spec: BranchSpec | GeneratorSpec) -> int:
    """Of a generator's blocks, or the backbone; what its name says where the file is not here."""
    if isinstance(spec, GeneratorSpec):
        return 8 * spec.depth * spec.width**2
    counted = parameters(spec.backbone)
    if counted is None:
        return _LARGE if re.search("beats.*large", spec.backbone.path, re.IGNORECASE) else _BASE
    return counted


def parameters(backbone: FileSpec) -> int | None:
    """How many a network has, by its file; None if that is not on this machine. Raises InputError if it is none."""
    if backbone.path in _BUILT_IN:
        return _BUILT_IN[backbone.path]
    try:
        file = local_file(backbone.path, backbone.sha256, fetch=False)
    except InputError:
        return None
    return _counted(file, file_digest(file))


@cache
def _counted(file: Path, digest: str) -> int:
    from branches.beats.checkpoint import count_parameters  # torch, which takes seconds to load

    return count_parameters(file)


def petaflop(spec: BranchSpec, clips: int) -> float:
    """Rough count of the 10^15 floating-point operations that a branch's training and embedding take."""
    training = spec.training
    passes = training.steps * training.batch_size * training.accumulation
    trained = FLOP_PER_PARAMETER[spec.strategy.name] * passes * training.crop_seconds
    embedded = 2 * clips * CLIP_SECONDS
    return _parameters(spec) * PATCHES_PER_SECOND * (trained + embedded) / 1e15


def generator_petaflop(spec: GeneratorSpec) -> float:
    """The same for the training of a generator; sampling takes a few per cent of it."""
    seconds = spec.steps * spec.batch_size * spec.crop_seconds
    return FLOP_PER_PARAMETER["full"] * _parameters(spec) * TOKENS_PER_SECOND * seconds / 1e15


def stored_bytes(spec: BranchSpec, embeddings: Sequence[EmbeddingSpec], clips: int) -> float:
    """What a branch's weights and embeddings of all clips take on disk, roughly, in float32."""
    bands = sum(BANDS if isinstance(e, PatchesSpec) and e.pooling.keeps_bands else 1 for e in embeddings)
    return 4 * (KEPT_PARAMETERS[spec.strategy.name] * _parameters(spec) + clips * WIDTH * bands)


def duration(seconds: float) -> str:
    """`8 s`, `12 min`, `3 h 05 min`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
