"""Acoustic tokenizers: a discrete label for each patch, the target of masked-patch prediction."""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from branches.beats.backbone import BEATs
from branches.beats.checkpoint import build_beats, load_state, naming, read_content
from branches.frames import N_MELS, PATCH_SIZE
from branches.frontend import fbank
from scoring.errors import InputError

_HEAD_PREFIXES = ("quantize.", "quantize_layer.")
# Moving statistics that keep the codebook up to date while it is trained; labels do not depend on them.
_STATISTICS = {
    "quantize.cluster_size",
    "quantize.embedding.cluster_size",
    "quantize.embedding.embed_avg",
    "quantize.embedding.initted",
}


class AcousticTokenizer(nn.Module, ABC):
    """Gives each 16 × 16 patch the number of the nearest of `n_codes` codes; patches are in the order of BEATs'."""

    n_codes: int

    def labels(self, waveforms: Tensor) -> Tensor:
        """Labels of a batch of clips.

        Args:
            waveforms: (B, T) float32, 16 kHz, in [−1, 1]; T ≥ 2 800.

        Returns:
            (B, P) int64 in [0, n_codes).

        Raises:
            InputError: the shape is wrong or the clips too short.
        """
        return self.patch_labels(fbank(waveforms))

    @torch.no_grad()
    def patch_labels(self, features: Tensor) -> Tensor:
        """Labels (B, P) int64 from features (B, F, 128) that `branches.frontend.fbank` gave."""
        return self._nearest(features)

    @abstractmethod
    def _nearest(self, features: Tensor) -> Tensor: ...


class BEATsTokenizer(AcousticTokenizer):
    """A released BEATs tokenizer (iteration 2 and later): encoder, projection, nearest code by cosine.

    Chen et al. 2022, arXiv:2212.09058, section 3.2.2. Dropout never acts: labels are those of eval mode.
    """

    def __init__(self, backbone: BEATs, quantizer: "Quantizer") -> None:
        super().__init__()
        self.backbone = backbone
        self.quantizer = quantizer
        self.n_codes = quantizer.quantize["embedding"].num_embeddings  # type: ignore[assignment]

    def train(self, mode: bool = True) -> "BEATsTokenizer":
        """Stays in eval mode: labels are targets, and must not change from step to step."""
        super().train(False)
        return self

    def _nearest(self, features: Tensor) -> Tensor:
        encoded, _ = self.backbone.encode(features)
        with torch.autocast(features.device.type, enabled=False):  # near codes differ by less than bfloat16 tells
            labels: Tensor = self.quantizer(encoded.float())
        return labels


class Quantizer(nn.Module):
    """Projection of the encoder's features and the codebook, named as in the released tokenizers."""

    def __init__(self, width: int, n_codes: int, dim: int) -> None:
        super().__init__()
        self.quantize_layer = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, dim))
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(n_codes, dim, _weight=torch.empty(n_codes, dim))})

    def forward(self, encoded: Tensor) -> Tensor:
        """(B, P, D) → (B, P) int64."""
        return nearest_code(self.quantize_layer(encoded), self.quantize["embedding"].weight)  # type: ignore[arg-type]


class RandomProjectionTokenizer(AcousticTokenizer):
    """The tokenizer of BEATs' first iteration: random projection of the patch, nearest of random codes by cosine.

    Chiu et al. 2022, arXiv:2202.01855. Projection and codes depend on the seed alone.
    """

    def __init__(self, seed: int, n_codes: int = 1024, dim: int = 256) -> None:
        super().__init__()
        self.n_codes = n_codes
        generator = torch.Generator().manual_seed(seed)
        projection = torch.randn(PATCH_SIZE**2, dim, generator=generator)
        codes = F.normalize(torch.randn(n_codes, dim, generator=generator), dim=-1)
        self.projection: Tensor
        self.codes: Tensor
        self.register_buffer("projection", projection)
        self.register_buffer("codes", codes)

    def _nearest(self, features: Tensor) -> Tensor:
        patches = _patches(features)
        # Else a patch's level, which is far larger than its shape, would decide on most labels.
        shapes = F.layer_norm(patches, patches.shape[-1:])
        with torch.autocast(features.device.type, enabled=False):
            return nearest_code(shapes @ self.projection, self.codes)


def nearest_code(x: Tensor, codes: Tensor) -> Tensor:
    """Number of the code nearest to each vector of `x`, which is brought to length 1 first.

    Args:
        x: (..., d).
        codes: (n, d), usually of length 1.

    Returns:
        (...) int64.
    """
    # |x − c|² without |x|², which is the same for all codes.
    distance = codes.square().sum(-1) - 2 * F.normalize(x, dim=-1) @ codes.T
    return distance.argmin(-1)


def _patches(features: Tensor) -> Tensor:
    """(B, F, 128) → (B, P, 256): the values of each patch, ordered by time, then frequency."""
    if features.dim() != 3 or features.shape[1] < PATCH_SIZE or features.shape[2] != N_MELS:
        raise InputError(f"features are {tuple(features.shape)}, must be (batch, frames ≥ {PATCH_SIZE}, {N_MELS})")
    patches = features.unfold(1, PATCH_SIZE, PATCH_SIZE).unfold(2, PATCH_SIZE, PATCH_SIZE)
    return patches.flatten(1, 2).flatten(2)


def load_tokenizer(path: str | os.PathLike[str], sha256: str | None = None) -> AcousticTokenizer:
    """A tokenizer in eval mode, on the CPU.

    Args:
        path: a released tokenizer checkpoint (path or URI as for `load_beats`), or "random:SEED" for a
            `RandomProjectionTokenizer`.
        sha256: digest of the file or its first digits, as for `load_beats`.

    Raises:
        InputError: the file cannot be used (see `load_beats`), or SEED is not a whole number.
    """
    scheme, _, seed = str(path).partition(":")
    if scheme == "random":
        if not (seed.isascii() and seed.isdigit()):
            raise InputError(f"tokenizer {path}: write random:SEED with a whole number")
        return RandomProjectionTokenizer(int(seed)).eval()
    content = read_content(path, sha256)
    with naming(path):
        return _build(content["cfg"], content["model"])


def _build(cfg: Mapping[str, Any], state: Mapping[str, Tensor]) -> BEATsTokenizer:
    sizes = [cfg.get(key) for key in ("quant_n", "quant_dim")]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise InputError("cfg has no quant_n and quant_dim; is this a BEATs tokenizer?")
    head = {key: value for key, value in state.items() if key.startswith(_HEAD_PREFIXES)}
    backbone = build_beats(cfg, {key: value for key, value in state.items() if key not in head})
    with torch.device("meta"):
        quantizer = Quantizer(backbone.embed_dim, *sizes)  # type: ignore[arg-type]
    load_state(quantizer, {key: value for key, value in head.items() if key not in _STATISTICS})
    return BEATsTokenizer(backbone, quantizer).eval()
