"""What a BEATs checkpoint's `cfg` says about the network, checked."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Self

from branches.frames import N_MELS
from scoring.errors import InputError


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters of a fine-tuned network; released checkpoints have none."""

    rank: int
    alpha: float
    """Adapters count alpha / rank."""
    targets: tuple[str, ...]
    """Names of the projections of a layer that have an adapter."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.targets) - set(LORA_TARGETS))
        if unknown or not self.targets:
            raise InputError(f"cfg: lora.targets {', '.join(unknown) or 'are empty'}; known: {', '.join(LORA_TARGETS)}")

    @classmethod
    def from_cfg(cls, cfg: Any) -> Self:
        """From the `lora` entry of a checkpoint's `cfg`; raises `InputError` as `BEATsConfig.from_cfg`."""
        if not isinstance(cfg, dict) or set(cfg) != {"rank", "alpha", "targets"}:
            raise InputError(f"cfg: lora must have rank, alpha and targets, not {cfg!r}")
        kinds = (("rank", int), ("alpha", float))
        rank, alpha = (_number(f"lora.{name}", kind, cfg[name]) for name, kind in kinds)
        if not isinstance(cfg["targets"], (list, tuple)) or not all(isinstance(t, str) for t in cfg["targets"]):
            raise InputError(f"cfg: lora.targets must be names, not {cfg['targets']!r}")
        return cls(int(rank), float(alpha), tuple(cfg["targets"]))


LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


@dataclass(frozen=True)
class BEATsConfig:
    """Size and behaviour of a BEATs network; the names are those of the released checkpoints.

    A key the released files may leave out has the default that the BEATs authors gave it.
    """

    input_patch_size: int
    """Frames and mel bins per patch."""
    embed_dim: int
    """Width of the patch embedding, before the projection to `encoder_embed_dim`."""
    encoder_layers: int
    encoder_embed_dim: int
    """Width D of the encoder and of what it gives; `BEATs.embed_dim`."""
    encoder_ffn_embed_dim: int
    encoder_attention_heads: int
    conv_pos: int
    """Kernel length of the positional convolution, in patches."""
    conv_pos_groups: int
    num_buckets: int
    """Rows of the relative-position table."""
    max_distance: int
    """Distance in patches from which on all are in the last bucket."""
    conv_bias: bool = False
    """Whether the patch embedding has a bias."""
    layer_norm_first: bool = False
    """True: pre-norm; False: post-norm."""
    deep_norm: bool = False
    """Scale residuals of a post-norm network by (2 · layers)^(1/4)."""
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    encoder_layerdrop: float = 0.0
    """Probability that training skips a layer."""
    dropout_input: float = 0.0
    finetuned_model: bool = False
    """Whether there is a predictor of classes."""
    predictor_dropout: float = 0.1
    predictor_class: int = 527
    lora: LoRAConfig | None = None
    """Adapters; in our own fine-tuned checkpoints only."""

    def __post_init__(self) -> None:
        if self.encoder_embed_dim % self.encoder_attention_heads:
            raise InputError("cfg: encoder_embed_dim is not a multiple of encoder_attention_heads")
        if self.encoder_embed_dim % self.conv_pos_groups:
            raise InputError("cfg: encoder_embed_dim is not a multiple of conv_pos_groups")
        if N_MELS % self.input_patch_size:
            raise InputError(f"cfg: input_patch_size {self.input_patch_size} does not divide {N_MELS} mel bins")

    @property
    def freq_patches(self) -> int:
        """Patches on the frequency axis (8 of 16 mel bins)."""
        return N_MELS // self.input_patch_size

    @classmethod
    def from_cfg(cls, cfg: Mapping[str, Any]) -> Self:
        """The configuration in a checkpoint's `cfg`; keys that do not bear on the result are passed over.

        Raises:
            InputError: a key is missing, of the wrong type, or asks for a network that is not BEATs as released.
        """
        for key, needed in _FIXED.items():
            # All of BEATs' releases say these; the authors' code knows other networks too.
            if cfg.get(key, needed if key == "activation_fn" else None) != needed:
                raise InputError(f"cfg: {key} is {cfg.get(key)!r}, only {needed!r} is supported")
        plain = [f for f in fields(cls) if f.name != "lora" and _given(f, cfg)]
        lora = None if cfg.get("lora") is None else LoRAConfig.from_cfg(cfg["lora"])
        return cls(**{f.name: _value(f.name, f.type, cfg) for f in plain}, lora=lora)

    def to_cfg(self) -> dict[str, Any]:
        """The `cfg` to save; `from_cfg` gives this configuration back."""
        cfg = {**asdict(self), **_FIXED}
        if self.lora is None:  # the released files have no such key
            del cfg["lora"]
        return cfg


_FIXED: dict[str, Any] = {"activation_fn": "gelu", "relative_position_embedding": True, "gru_rel_pos": True}


def _given(f: Any, cfg: Mapping[str, Any]) -> bool:
    if f.name in cfg:
        return True
    if f.default is MISSING:
        raise InputError(f"cfg has no {f.name}; is this a BEATs checkpoint?")
    return False


def _value(name: str, kind: Any, cfg: Mapping[str, Any]) -> Any:
    """`cfg[name]`, checked for its type and sign; a whole number will do for a float."""
    value = _number(name, kind, cfg[name])
    if kind is float and not value < 1:
        raise InputError(f"cfg: {name} must be in [0, 1), not {value}")
    return value


def _number(name: str, kind: Any, value: Any) -> Any:
    accepted = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"cfg: {name} must be {kind.__name__}, not {value!r}")
    if (kind is int and value <= 0) or (kind is float and not value >= 0):
        raise InputError(f"cfg: {name} must be positive, not {value}")
    return value


TINY = BEATsConfig(
    input_patch_size=16,
    embed_dim=32,
    encoder_layers=2,
    encoder_embed_dim=64,
    encoder_ffn_embed_dim=128,
    encoder_attention_heads=4,
    conv_pos=16,
    conv_pos_groups=8,
    num_buckets=32,
    max_distance=64,
    deep_norm=True,
    dropout=0.0,
    attention_dropout=0.0,
)
"""The built-in random network "tiny": small enough for tests and the demo on a CPU."""
