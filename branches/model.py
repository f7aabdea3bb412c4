"""One branch's network: BEATs → pooling → embedding, and how clips become embeddings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from branches.audio.cache import AudioCache
from branches.beats import BEATs, load_beats, save_beats
from branches.beats.checkpoint import load_state, naming, read_content
from branches.frontend import SAMPLE_RATE, fbank, frame_padding, full_precision
from branches.pooling import build_pooling
from branches.spec import BUILT_IN, BackboneSpec, BranchSpec, Channel
from branches.training.strategies import prepare
from branches.transfer import to_device
from scoring.atomic import atomic
from scoring.errors import InputError


class BranchModel(nn.Module):
    """Backbone, pooling and the linear layer that gives the embedding; frozen branches have no such layer.

    spec: the branch
    train_in_bfloat16: whether the encoder computes in it while training; embeddings have the precision of the spec
    backbone: with its adapters, if the strategy has any; None loads the spec's
    """

    def __init__(self, spec: BranchSpec, train_in_bfloat16: bool = False, backbone: BEATs | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.train_in_bfloat16 = train_in_bfloat16
        self.backbone = load_beats(spec.backbone.path, sha256=spec.backbone.sha256) if backbone is None else backbone
        self.groups = prepare(self.backbone, spec.strategy) if backbone is None else []
        self.backbone.layer_numbers(spec.backbone.layers)
        self.width = patch_width(self.backbone, spec.backbone)
        self.pooling = build_pooling(spec.pooling, self.width)
        self.projection: nn.Module = nn.Identity()
        if not spec.is_frozen:
            self.projection = nn.Linear(self.pooling.output_dim, spec.embedding_dim)

    def encode(self, features: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Normalised log-mels (B, F, 128) and padded frames (B, F) → patches (B, P, D) float32 and their padding.

        Only the encoder computes in bfloat16: in what follows, variances and angles would cancel.
        """
        spec = self.spec.backbone
        bfloat16 = self.train_in_bfloat16 if self.training else spec.precision == "bfloat16"
        with torch.autocast(features.device.type, torch.bfloat16, enabled=bfloat16), full_precision():
            patches, patch_padding = self.backbone.encode(features, padding, spec.layers, spec.combine)
        return patches.float(), patch_padding

    def pool(self, patches: Tensor, padding: Tensor | None) -> Tensor:
        """Patches (B, P, D) → embeddings (B, E), or (B, 8, E) by frequency band."""
        embeddings: Tensor = self.projection(self.pooling(patches, padding))
        return embeddings

    def forward(self, features: Tensor, padding: Tensor | None) -> Tensor:
        """Normalised log-mels (B, F, 128) and padded frames (B, F) → embeddings (B, E) or (B, 8, E), float32."""
        return self.pool(*self.encode(features, padding))

    def head_state(self) -> dict[str, Tensor]:
        """Tensors of what is not the backbone."""
        return {k: v.detach().cpu() for k, v in self.state_dict().items() if not k.startswith("backbone.")}


def patch_width(backbone: BEATs, spec: BackboneSpec) -> int:
    """Width of a patch of the layers that a spec asks for."""
    return backbone.embed_dim * (len(spec.layers) if spec.combine == "concat" else 1)


def save_branch(model: BranchModel, path: str | os.PathLike[str]) -> None:
    """Write what training changed: adapters, layers and head; the backbone's checkpoint is referred to.

    `load_branch` gives the branch back, `branches.beats.load_beats` its backbone.
    """
    backbone = model.spec.backbone
    elsewhere = backbone.path in BUILT_IN or "://" in backbone.path
    location = backbone.path if elsewhere else str(Path(backbone.path).resolve())
    branch = {"spec": model.spec.model_dump_json(), "head": model.head_state()}
    save_beats(model.backbone, path, base=(location, backbone.sha256), branch=branch)


def load_branch(path: str | os.PathLike[str], device: str = "cpu") -> BranchModel:
    """A branch that `save_branch` wrote, in eval mode on a device.

    Raises
    ------
    InputError
        If the file or the backbone's checkpoint it refers to cannot be used.
    """
    with naming(path):
        match read_content(path).get("branch"):
            case {"spec": str() as text, "head": dict() as head}:
                pass
            case _:
                raise InputError("no branch in this checkpoint; load it with load_beats")
        try:
            spec = BranchSpec.model_validate_json(text)
        except ValidationError as error:
            raise InputError(f"the spec in it is of another version of tutti ({error.error_count()} errors)") from None
    backbone = load_beats(path)
    with torch.random.fork_rng(devices=[]):
        model = BranchModel(spec, backbone=backbone)
    with naming(path):
        load_state(model, {**head, **{f"backbone.{k}": v for k, v in backbone.state_dict().items()}})
    return model.eval().to(device)


def relocate_branch(
    source: str | os.PathLike[str], target: str | os.PathLike[str], spec: BranchSpec, backbone: str
) -> None:
    """Copy a branch's file, so that it refers to a backbone at another place.

    Parameters
    ----------
    spec: of the branch, as it shall stand in the copy
    backbone: path, if relative to the folder of `target`, or a built-in name
    """
    content = read_content(source)
    content["base"] = {"path": backbone, "sha256": None}
    content["branch"] = {**content["branch"], "spec": spec.model_dump_json()}
    with atomic(Path(target)) as temporary, temporary.open("xb") as file:
        torch.save(content, file)


def features_of(waveforms: list[NDArray[np.float32]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Log-mels (B, F, 128) of waveforms of any lengths, with padded frames (B, F) or None if lengths are equal."""
    lengths = [len(w) for w in waveforms]
    batch = torch.from_numpy(np.stack([np.pad(w, (0, max(lengths) - len(w))) for w in waveforms]))
    features = fbank(to_device(batch, device))
    if len(set(lengths)) == 1:
        return features, None
    return features, frame_padding(to_device(torch.tensor(lengths), device), features.shape[1])


@torch.inference_mode()
def embed(model: BranchModel, audio: AudioCache, channel: Channel, batch_size: int = 32) -> NDArray[np.float32]:
    """Embeddings of all clips at their full length: (clips, E), or (clips, 8, E) by frequency band."""
    device = next(model.parameters()).device
    model.eval()
    result: NDArray[np.float32] | None = None
    for rows in batches_of_like_length(audio.lengths, batch_size):
        features, padding = features_of([audio.waveform(i, channel) for i in rows], device)
        embeddings = model(features, padding).cpu().numpy()
        if result is None:
            result = np.empty((len(audio), *embeddings.shape[1:]), np.float32)
        result[rows] = embeddings
    assert result is not None
    return result


def batches_of_like_length(lengths: NDArray[np.int64], batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Positions of clips of about the same length, so that little is padded; of long clips fewer at a time.

    Attention needs memory for the square of the length: a batch takes what `batch_size` clips of 10 s take.
    """
    order = np.argsort(lengths, kind="stable")
    first = 0
    while first < len(order):
        longest = lengths[order[first : first + batch_size][-1]] / (10 * SAMPLE_RATE)
        size = batch_size if longest <= 1 else max(1, int(batch_size / longest**2))
        yield order[first : first + size]
        first += size
