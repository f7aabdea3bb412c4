"""One branch's network: BEATs → pooling → embedding, and how clips become embeddings."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from branches.audio.cache import AudioCache
from branches.beats import BEATs, load_beats
from branches.beats.checkpoint import load_state, naming, read_tensors, save_tensors
from branches.frames import SAMPLE_RATE
from branches.frontend import fbank, frame_padding, full_precision
from branches.log_mel import LogMel
from branches.pooling import Pooling
from branches.spec import LOG_MEL, BackboneSpec, BranchSpec, Channel, EmbeddingSpec, PatchesSpec
from branches.training.strategies import prepare
from branches.transfer import to_device
from scoring.errors import InputError


class BranchModel(nn.Module):
    """A backbone, and the head that is trained: pooling and a linear layer; frozen branches have none.

    spec: the branch
    train_in_bfloat16: whether the encoder computes in it while training; embeddings have the precision of the spec
    """

    def __init__(self, spec: BranchSpec, train_in_bfloat16: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self.train_in_bfloat16 = train_in_bfloat16
        self.backbone = load_backbone(spec.backbone)
        self.groups = prepare(self.backbone, spec.strategy) if isinstance(self.backbone, BEATs) else []
        self.backbone.layer_numbers(spec.backbone.layers)
        self.width = self.backbone.embed_dim * len(spec.backbone.layers)  # of a patch
        if not spec.is_frozen:
            self.pooling = Pooling(spec.pooling, self.width)
            self.projection = nn.Linear(self.pooling.output_dim, spec.embedding_dim)

    @property
    def beats(self) -> BEATs:
        """The backbone of a branch that is trained."""
        assert isinstance(self.backbone, BEATs)
        return self.backbone

    def encode(
        self, features: Tensor, padding: Tensor | None, layers: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Normalised log-mels (B, F, 128) and padded frames (B, F) → patches (B, P, D) float32 and their padding.

        layers: side by side; None takes those of the spec

        Only the encoder computes in bfloat16: in what follows, variances and angles would cancel.
        """
        spec = self.spec.backbone
        bfloat16 = self.train_in_bfloat16 if self.training else spec.precision == "bfloat16"
        with torch.autocast(features.device.type, torch.bfloat16, enabled=bfloat16), full_precision():
            patches, patch_padding = self.backbone.encode(features, padding, layers or spec.layers)
        return patches.float(), patch_padding

    @full_precision()
    def pool(self, patches: Tensor, padding: Tensor | None) -> Tensor:
        """Patches (B, P, D) → what the head gives: embeddings (B, E), or (B, 8, E) by frequency band."""
        embeddings: Tensor = self.projection(self.pooling(patches, padding))
        return embeddings

    def forward(self, features: Tensor, padding: Tensor | None) -> Tensor:
        """Normalised log-mels (B, F, 128) and padded frames (B, F) → embeddings (B, E) or (B, 8, E), float32."""
        return self.pool(*self.encode(features, padding))

    @torch.inference_mode()
    @full_precision()
    def embeddings(self, features: Tensor, padding: Tensor | None, embeddings: Sequence[EmbeddingSpec]) -> list[Tensor]:
        """Several embeddings (B, E) or (B, 8, E) of the same clips: the encoder runs once for all of them."""
        taken = [e.layers if isinstance(e, PatchesSpec) else self.spec.backbone.layers for e in embeddings]
        asked = [self.backbone.layer_numbers(layers) for layers in taken]
        wanted = sorted({n for numbers in asked for n in numbers})
        patches, patch_padding = self.encode(features, padding, wanted)
        outputs = dict(zip(wanted, patches.chunk(len(wanted), dim=-1), strict=True))
        pooled = []
        for embedding, numbers in zip(embeddings, asked, strict=True):
            chosen = torch.cat([outputs[n] for n in numbers], dim=-1)
            pool = Pooling(embedding.pooling, chosen.shape[-1]) if isinstance(embedding, PatchesSpec) else self.pool
            pooled.append(pool(chosen, patch_padding))
        return pooled


def load_backbone(spec: BackboneSpec) -> BEATs | LogMel:
    """What turns log-mels into patches: a checkpoint, or log-mels as they are."""
    return LogMel() if spec.path == LOG_MEL else load_beats(spec.path, sha256=spec.sha256)


def save_branch(model: BranchModel, path: str | os.PathLike[str]) -> None:
    """Write a branch: its spec, and the tensors that training changed; the backbone's checkpoint is not in the file."""
    fixed = _fixed(model)
    changed = {name: value.detach().cpu() for name, value in model.state_dict().items() if name not in fixed}
    save_tensors({"spec": model.spec.model_dump_json(), "changed": changed}, path)


def load_branch(path: str | os.PathLike[str], backbone: str | None = None, device: str = "cpu") -> BranchModel:
    """A branch that `save_branch` wrote, in eval mode on a device: the model of its spec, filled with what has changed.

    backbone: where the checkpoint that it was trained from lies now; None takes the place in the spec

    Raises InputError if the file cannot be used, or the checkpoint, which must have the digest in the spec.
    """
    with naming(path):
        match read_tensors(Path(path)):
            case {"spec": str() as text, "changed": dict() as changed}:
                pass
            case _:
                raise InputError("no trained branch of this version of tutti")
        try:
            spec = BranchSpec.model_validate_json(text)
        except ValidationError as error:
            raise InputError(f"the spec in it is of another version of tutti ({error.error_count()} errors)") from None
    if backbone is not None:
        spec = spec.model_copy(update={"backbone": spec.backbone.model_copy(update={"path": backbone})})
    with torch.random.fork_rng(devices=[]):
        model = BranchModel(spec)
    with naming(path):
        load_state(model, changed, fixed=_fixed(model))
    return model.eval().to(device)


def _fixed(model: BranchModel) -> set[str]:
    """Names of the parameters that stay as they are in the backbone's checkpoint."""
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def features_of(waveforms: list[NDArray[np.float32]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Log-mels (B, F, 128) of waveforms of any lengths, with padded frames (B, F) or None if lengths are equal."""
    lengths = [len(w) for w in waveforms]
    batch = torch.from_numpy(np.stack([np.pad(w, (0, max(lengths) - len(w))) for w in waveforms]))
    features = fbank(to_device(batch, device))
    if len(set(lengths)) == 1:
        return features, None
    return features, frame_padding(to_device(torch.tensor(lengths), device), features.shape[1])


def embed(
    model: BranchModel,
    audio: AudioCache,
    channel: Channel,
    embeddings: Sequence[EmbeddingSpec],
    files: Sequence[Path],
    batch_size: int = 32,
) -> None:
    """Write embeddings of all clips at their full length, (clips, E) or (clips, 8, E), each to a `.npy` file.

    One pass over the clips serves all; of each embedding a batch is held in memory.
    """
    device = next(model.parameters()).device
    model.eval()
    arrays: list[np.memmap[Any, np.dtype[np.float32]]] = []
    for rows in batches_of_like_length(audio.lengths, batch_size):
        outputs = model.embeddings(*features_of([audio.waveform(i, channel) for i in rows], device), embeddings)
        arrays = arrays or [
            np.lib.format.open_memmap(file, "w+", np.float32, (len(audio), *output.shape[1:]))
            for file, output in zip(files, outputs, strict=True)
        ]
        for array, output in zip(arrays, outputs, strict=True):
            array[rows] = output.cpu().numpy()


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
