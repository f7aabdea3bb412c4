"""Embeddings of a backbone as it is, without training: one pass over the clips serves every branch that asks.

Frozen branches differ in the layers they listen to and in their pooling; pseudo-labels need a plain mean. All that
a run wants of one backbone and channel is computed together, by whoever comes first, and kept in files that every
branch of the node maps into memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from branches.audio.cache import AudioCache
from branches.beats import load_beats
from branches.frontend import full_precision
from branches.model import batches_of_like_length, features_of, patch_width
from branches.pooling import Pooling, build_pooling
from branches.spec import BackboneSpec, BranchSpec, Channel, MeanSpec, PoolingSpec
from scoring.atomic import atomic
from scoring.settings import Settings

BATCH = 64


class View(Settings):
    """What is asked of a frozen backbone."""

    backbone: BackboneSpec
    channel: Channel
    pooling: PoolingSpec


def view_of(spec: BranchSpec) -> View | None:
    """What a branch needs of its frozen backbone: its embeddings, or those behind its pseudo-labels; or nothing."""
    if spec.is_frozen:
        return View(backbone=spec.backbone, channel=spec.channel, pooling=spec.pooling)
    if spec.classes.pseudo_labels:
        plain = BackboneSpec(path=spec.backbone.path, sha256=spec.backbone.sha256)
        return View(backbone=plain, channel=spec.channel, pooling=MeanSpec())
    return None


def frozen_embeddings(
    view: View,
    views: Sequence[View],
    audio: AudioCache,
    folder: Path,
    device: str,
    share: Callable[[Path], None] = lambda path: None,
) -> NDArray[np.float32]:
    """Embeddings of all clips, (clips, D) or (clips, 8, D), mapped from a file in `folder`.

    Parameters
    ----------
    view: what is wanted
    views: all that the run will want; what goes with `view` is computed with it
    folder: shared by all branches on the same data and with the same code
    device: `cpu` or `cuda`
    share: called with each file when it has been made; may put another in its place
    """
    path = folder / _name(view)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "frozen.lock"):
        if not path.exists():
            together = [v for v in dict.fromkeys([view, *views]) if _source(v) == _source(view)]
            missing = [v for v in together if not (folder / _name(v)).exists()]
            for made, embeddings in zip(missing, embed_views(missing, audio, device), strict=True):
                with atomic(folder / _name(made)) as temporary, temporary.open("wb") as file:
                    np.save(file, embeddings)
                share(folder / _name(made))
    embeddings_found: NDArray[np.float32] = np.load(path, mmap_mode="r")
    return embeddings_found


def _source(view: View) -> tuple[str, str, str]:
    return view.backbone.sha256 or view.backbone.path, view.backbone.precision, view.channel


def _name(view: View) -> str:
    backbone = view.backbone.model_dump(exclude={"path"} if view.backbone.sha256 else set())
    text = f"{backbone} {view.channel} {view.pooling!r}"
    return f"frozen-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npy"


def embed_views(
    views: Sequence[View], audio: AudioCache, device: str, batch_size: int = BATCH
) -> list[NDArray[np.float32]]:
    """Embeddings of all clips for views of one backbone and channel: the encoder runs once."""
    backbone = FrozenBackbone(views, device)
    embeddings_by_view: list[NDArray[np.float32]] = []
    for rows in batches_of_like_length(audio.lengths, batch_size):
        clips = [audio.waveform(i, views[0].channel) for i in rows]
        outputs = backbone(*features_of(clips, torch.device(device)))
        embeddings_by_view = embeddings_by_view or [
            np.empty((len(audio), *output.shape[1:]), np.float32) for output in outputs
        ]
        for embeddings, output in zip(embeddings_by_view, outputs, strict=True):
            embeddings[rows] = output.cpu().numpy()
    return embeddings_by_view


class FrozenBackbone:
    """A backbone, and the layers and poolings of all views of it: its encoder runs once for all of them."""

    def __init__(self, views: Sequence[View], device: str) -> None:
        source = views[0].backbone
        self._backbone = load_beats(source.path, sha256=source.sha256).to(device)
        self._specs = [view.backbone for view in views]
        self._poolings: list[Pooling] = [
            build_pooling(v.pooling, patch_width(self._backbone, v.backbone)).to(device).eval() for v in views
        ]
        self._asked = [self._backbone.layer_numbers(spec.layers) for spec in self._specs]
        self._wanted = sorted({n for numbers in self._asked for n in numbers})
        self._bfloat16 = source.precision == "bfloat16"

    @torch.inference_mode()
    def __call__(self, features: Tensor, padding: Tensor | None) -> list[Tensor]:
        """Normalised log-mels (B, F, 128) and padded frames (B, F) → each view's (B, D) or (B, 8, D)."""
        with torch.autocast(features.device.type, torch.bfloat16, enabled=self._bfloat16), full_precision():
            patches, patch_padding = self._backbone.encode(features, padding, self._wanted)
        layers = dict(zip(self._wanted, patches.float().chunk(len(self._wanted), dim=-1), strict=True))
        return [
            pooling(_combined([layers[n] for n in numbers], spec), patch_padding)
            for spec, pooling, numbers in zip(self._specs, self._poolings, self._asked, strict=True)
        ]


def _combined(layers: list[Tensor], spec: BackboneSpec) -> Tensor:
    return torch.cat(layers, dim=-1) if spec.combine == "concat" else torch.stack(layers).mean(dim=0)
