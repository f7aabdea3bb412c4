"""One branch's network: BEATs → pooling → embedding, and how clips become embeddings."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from branches.audio import AudioCache
from branches.beats import load_beats
from branches.frontend import fbank, frame_padding
from branches.pooling import POOLINGS
from branches.spec import BranchSpec, Channel
from branches.strategies import prepare


class BranchModel(nn.Module):
    """Backbone, pooling and the linear layer that gives the embedding.

    encode_in_bfloat16: whether the encoder computes in it
    """

    def __init__(self, spec: BranchSpec, encode_in_bfloat16: bool = False) -> None:
        super().__init__()
        self.encode_in_bfloat16 = encode_in_bfloat16
        self.backbone = load_beats(spec.backbone.path, sha256=spec.backbone.sha256)
        prepare(self.backbone, spec.strategy)
        self.pooling = POOLINGS[spec.pooling](self.backbone.embed_dim)
        self.projection = nn.Linear(self.pooling.output_dim, spec.embedding_dim)

    def forward(self, features: Tensor, padding: Tensor | None) -> Tensor:
        """Normalised log-mels (B, F, 128) and padded frames (B, F) → embeddings (B, E) float32.

        Only the encoder computes in bfloat16: in what follows, variances and angles would cancel.
        """
        with torch.autocast(features.device.type, torch.bfloat16, enabled=self.encode_in_bfloat16):
            patches, patch_padding = self.backbone.encode(features, padding)
        embeddings: Tensor = self.projection(self.pooling(patches.float(), patch_padding))
        return embeddings


def features_of(waveforms: list[NDArray[np.float32]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Log-mels (B, F, 128) of waveforms of any lengths, with padded frames (B, F) or None if lengths are equal."""
    lengths = torch.tensor([len(w) for w in waveforms])
    longest = int(lengths.max())
    batch = torch.from_numpy(np.stack([np.pad(w, (0, longest - len(w))) for w in waveforms])).to(device)
    features = fbank(batch)
    if bool((lengths == longest).all()):
        return features, None
    return features, frame_padding(lengths.to(device), features.shape[1])


@torch.inference_mode()
def embed(model: BranchModel, audio: AudioCache, channel: Channel, batch_size: int = 32) -> NDArray[np.float32]:
    """Embeddings of all clips at their full length: (clips, E)."""
    device = next(model.parameters()).device
    model.eval()
    result: NDArray[np.float32] | None = None
    for rows in _batches_of_like_length(audio.lengths, batch_size):
        features, padding = features_of([audio.waveform(i, channel) for i in rows], device)
        embeddings = model(features, padding).cpu().numpy()
        if result is None:
            result = np.empty((len(audio), embeddings.shape[1]), np.float32)
        result[rows] = embeddings
    assert result is not None
    return result


def _batches_of_like_length(lengths: NDArray[np.int64], batch_size: int) -> Iterator[NDArray[np.int64]]:
    order = np.argsort(lengths, kind="stable")
    for first in range(0, len(order), batch_size):
        yield order[first : first + batch_size]
