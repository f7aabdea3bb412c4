"""BEATs (Chen et al. 2022, arXiv:2212.09058): the released checkpoints as PyTorch modules, and their tokenizers."""

from branches.beats.backbone import BEATs
from branches.beats.checkpoint import load_beats, save_beats
from branches.beats.config import BEATsConfig
from branches.beats.tokenizer import AcousticTokenizer, RandomProjectionTokenizer, load_tokenizer

__all__ = [
    "AcousticTokenizer",
    "BEATs",
    "BEATsConfig",
    "RandomProjectionTokenizer",
    "load_beats",
    "load_tokenizer",
    "save_beats",
]
