"""What a branch costs, roughly, and times for people."""

from __future__ import annotations

from pathlib import Path

from branches.spec import LOG_MEL, BranchSpec, GeneratorSpec

# Floating-point operations per parameter and patch: a forward pass has 2, gradients of the activations cost 2 more,
# and those of the weights another 2. Of `partial` the dearest case is assumed.
FLOP_PER_PARAMETER = {"frozen": 0, "head": 2, "partial": 6, "lora": 4, "full": 6}
PATCHES_PER_SECOND = 50  # 100 frames of 10 ms, 16 × 16 patches of 128 mels
TOKENS_PER_SECOND = 25  # of a generator, four frames each
PARAMETERS = {"tiny": 86_000, "small": 660_000, LOG_MEL: 0}
BASE_PARAMETERS = 90_000_000  # BEATs base, the size of every released checkpoint; taken where the file is not there
ASSUMED_TFLOPS = 100  # sustained in bf16 by a data-centre GPU at a fraction of its peak
CLIP_SECONDS = 10.0
# GFLOP/s of one CPU core for networks of up to so many parameters, twice `tiny` and `small`, measured while these and
# BEATs base train on 2 s: small ones mostly wait for memory.
CORE_GFLOPS = {172_000: 3, 1_320_000: 14, 10**12: 55}


def core_gflops(spec: BranchSpec | GeneratorSpec) -> float:
    """GFLOP/s of one CPU core that trains a network of this size."""
    return next(speed for size, speed in CORE_GFLOPS.items() if _parameters(spec) <= size)


def _parameters(spec: BranchSpec | GeneratorSpec) -> int:
    """Of a generator's blocks, or the backbone; of a file on this machine by its size, since nothing is loaded here."""
    if isinstance(spec, GeneratorSpec):
        return 8 * spec.depth * spec.width**2
    path = spec.backbone.path
    if path in PARAMETERS:
        return PARAMETERS[path]
    return Path(path).stat().st_size // 4 if Path(path).is_file() else BASE_PARAMETERS


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


def duration(seconds: float) -> str:
    """`8 s`, `12 min`, `3 h 05 min`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
