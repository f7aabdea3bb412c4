"""Embeddings of a backbone as it is, without training: one pass over the clips serves every branch that asks.

Frozen branches differ in the layers they listen to and in their pooling; pseudo-labels need embeddings, too. All that
a run wants of one backbone and channel is computed together, by whoever comes first, and kept in files that every
branch of the node maps into memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from branches.audio.cache import AudioCache
from branches.model import BranchModel, embed
from branches.spec import FrozenInput
from scoring.atomic import atomic
from scoring.locks import locked

BATCH = 64


def frozen_embeddings(
    wanted: FrozenInput,
    inputs: Sequence[FrozenInput],
    audio: AudioCache,
    folder: Path,
    device: str,
    share: Callable[[Path], None] = lambda path: None,
) -> np.memmap[Any, np.dtype[np.float32]]:
    """Embeddings of all clips, (clips, D) or (clips, 8, D), mapped from a file in `folder`.

    Parameters
    ----------
    wanted: spec of a frozen branch, and what is taken from it
    inputs: all that the run will want; what goes with `wanted` is computed with it
    folder: shared by all branches on the same data and with the same code
    device: `cpu` or `cuda`
    share: called with each file when it has been made; may put another in its place
    """
    path = folder / _name(wanted)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "frozen.lock"):
        if not path.exists():
            together = {_name(i): i for i in [wanted, *inputs] if _source(i) == _source(wanted)}
            missing = {folder / name: i for name, i in together.items() if not (folder / name).exists()}
            with ExitStack() as stack:
                files = [stack.enter_context(atomic(file)) for file in missing]
                model = BranchModel(wanted[0]).to(device)
                embed(model, audio, wanted[0].channel, [e for _, e in missing.values()], files, BATCH)
            for file in missing:
                share(file)
    mapped: np.memmap[Any, np.dtype[np.float32]] = np.load(path, mmap_mode="r")
    return mapped


def _source(wanted: FrozenInput) -> tuple[str, str, str]:
    backbone = wanted[0].backbone
    return backbone.sha256 or backbone.path, backbone.precision, wanted[0].channel


def _name(wanted: FrozenInput) -> str:
    return f"frozen-{hashlib.sha256(f'{_source(wanted)} {wanted[1]!r}'.encode()).hexdigest()[:16]}.npy"
