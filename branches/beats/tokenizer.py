"""Acoustic tokenizers: a discrete label for each patch, the target of masked-patch prediction."""

import os
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from branches.beats.backbone import BEATs
from branches.beats.checkpoint import build_beats, load_state, naming, read_checkpoint
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
    """Gives each 16 × 16 patch, in the order of BEATs', the number of the nearest of `codes` (n_codes, d) by cosine."""

    codes: Tensor

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.n_codes = len(codes)
        self.register_buffer("codes", codes)

    def labels(self, waveforms: Tensor) -> Tensor:
        """Labels (B, P) int64 in [0, n_codes) of clips (B, T) float32 at 16 kHz, in [−1, 1].

        Raises InputError if the shape is wrong or the clips are shorter than 2 800 samples.
        """
        return self.patch_labels(fbank(waveforms))

    @torch.no_grad()
    def patch_labels(self, features: Tensor) -> Tensor:
        """Labels (B, P) int64 from features (B, F, 128) that `branches.frontend.fbank` gave."""
        encoded = self._encode(features)
        with torch.autocast(features.device.type, enabled=False):  # near codes differ by less than bfloat16 tells
            vectors = F.normalize(self._project(encoded.float()), dim=-1)
            # |x − c|² without |x|², which is the same for all codes.
            return (self.codes.square().sum(-1) - 2 * vectors @ self.codes.T).argmin(-1)

    @abstractmethod
    def _encode(self, features: Tensor) -> Tensor:
        """(B, F, 128) → (B, P, ·)."""

    @abstractmethod
    def _project(self, encoded: Tensor) -> Tensor:
        """(B, P, ·) → (B, P, d)."""


class BEATsTokenizer(AcousticTokenizer):
    """A released BEATs tokenizer (iteration 2 and later): encoder, projection, nearest code.

    Chen et al. 2022, arXiv:2212.09058, section 3.2.2. Dropout never acts: labels are those of eval mode.
    """

    def __init__(self, backbone: BEATs, quantize_layer: nn.Module, codes: Tensor) -> None:
        super().__init__(codes)
        self.backbone, self.quantize_layer = backbone, quantize_layer

    def train(self, mode: bool = True) -> "BEATsTokenizer":
        """Stays in eval mode: labels are targets, and must not change from step to step."""
        super().train(False)
        return self

    def _encode(self, features: Tensor) -> Tensor:
        return self.backbone.encode(features)[0]

    def _project(self, encoded: Tensor) -> Tensor:
        projected: Tensor = self.quantize_layer(encoded)
        return projected


class RandomProjectionTokenizer(AcousticTokenizer):
    """The tokenizer of BEATs' first iteration: random projection of the patch, nearest of random codes.

    Chiu et al. 2022, arXiv:2202.01855. Projection and codes depend on the seed alone.
    """

    projection: Tensor

    def __init__(self, seed: int, n_codes: int = 1024, dim: int = 256) -> None:
        generator = torch.Generator().manual_seed(seed)
        projection = torch.randn(PATCH_SIZE**2, dim, generator=generator)
        super().__init__(F.normalize(torch.randn(n_codes, dim, generator=generator), dim=-1))
        self.register_buffer("projection", projection)

    def _encode(self, features: Tensor) -> Tensor:
        if features.dim() != 3 or features.shape[1] < PATCH_SIZE or features.shape[2] != N_MELS:
            raise InputError(f"features are {tuple(features.shape)}, must be (batch, frames ≥ {PATCH_SIZE}, {N_MELS})")
        patches = features.unfold(1, PATCH_SIZE, PATCH_SIZE).unfold(2, PATCH_SIZE, PATCH_SIZE)
        # Normalised, else a patch's level, which is far larger than its shape, would decide on most labels.
        return F.layer_norm(patches.flatten(1, 2).flatten(2), [PATCH_SIZE**2])

    def _project(self, encoded: Tensor) -> Tensor:
        return encoded @ self.projection


def load_tokenizer(path: str | os.PathLike[str], sha256: str | None = None) -> AcousticTokenizer:
    """A tokenizer in eval mode, on the CPU.

    path: a released tokenizer checkpoint (path or URI as for `load_beats`), or "random:SEED" for a
        `RandomProjectionTokenizer`
    sha256: digest of the file or its first digits, as for `load_beats`

    Raises InputError if the file cannot be used (see `load_beats`), or SEED is not a whole number.
    """
    scheme, _, seed = str(path).partition(":")
    if scheme == "random":
        if not (seed.isascii() and seed.isdigit()):
            raise InputError(f"tokenizer {path}: write random:SEED with a whole number")
        return RandomProjectionTokenizer(int(seed)).eval()
    cfg, state = read_checkpoint(path, sha256)
    with naming(path):
        match cfg:
            case {"quant_n": int() as n_codes, "quant_dim": int() as dim} if n_codes > 0 and dim > 0:
                pass
            case _:
                raise InputError("cfg has no quant_n and quant_dim; is this a BEATs tokenizer?")
        head = {key: value for key, value in state.items() if key.startswith(_HEAD_PREFIXES)}
        backbone = build_beats(cfg, {key: value for key, value in state.items() if key not in head})
        width = backbone.embed_dim
        with torch.device("meta"):
            quantize_layer = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, dim))
            codebook = nn.Embedding(n_codes, dim, _weight=torch.empty(n_codes, dim))
        modules = {"quantize_layer": quantize_layer, "quantize": nn.ModuleDict({"embedding": codebook})}
        load_state(nn.ModuleDict(modules), {key: head[key] for key in head.keys() - _STATISTICS})
    return BEATsTokenizer(backbone, quantize_layer, codebook.weight.detach()).eval()
