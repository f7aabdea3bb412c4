"""What a BEATs checkpoint's `cfg` says about the network, checked."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, ValidationError, model_validator

from branches.frames import N_MELS
from branches.frontend import FBANK_MEAN, FBANK_STD
from scoring.errors import InputError

Probability = Annotated[float, Field(ge=0, lt=1)]


class BEATsConfig(BaseModel):
    """Size and behaviour of a BEATs network; the names are those of the released checkpoints.

    What the released files may leave out has the default that the BEATs authors gave it.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    input_patch_size: PositiveInt
    """Frames and mel bins per patch."""
    embed_dim: PositiveInt
    """Width of the patch embedding, before the projection to `encoder_embed_dim`."""
    encoder_layers: PositiveInt
    encoder_embed_dim: PositiveInt
    """Width D of the encoder and of what it gives; `BEATs.embed_dim`."""
    encoder_ffn_embed_dim: PositiveInt
    encoder_attention_heads: PositiveInt
    conv_pos: PositiveInt
    """Kernel length of the positional convolution, in patches."""
    conv_pos_groups: PositiveInt
    num_buckets: PositiveInt
    """Rows of the relative-position table."""
    max_distance: PositiveInt
    """Distance in patches from which on all are in the last bucket."""
    conv_bias: bool = False
    """Whether the patch embedding has a bias."""
    layer_norm_first: bool = False
    """True: pre-norm; False: post-norm."""
    deep_norm: bool = False
    """Scale residuals of a post-norm network by (2 · layers)^(1/4)."""
    dropout: Probability = 0.1
    attention_dropout: Probability = 0.1
    activation_dropout: Probability = 0.0
    encoder_layerdrop: Probability = 0.0
    """Probability that training skips a layer."""
    dropout_input: Probability = 0.0
    finetuned_model: bool = False
    """Whether there is a predictor of classes."""
    predictor_dropout: Probability = 0.1
    predictor_class: PositiveInt = 527
    fbank_mean: FiniteFloat = FBANK_MEAN
    """Mean of the log-mels in pre-training, which is taken off them; of an OpenBEATs checkpoint its own."""
    fbank_std: Annotated[FiniteFloat, Field(gt=0)] = FBANK_STD
    """Their standard deviation, by twice which they are divided."""
    # All of BEATs' releases say these three; the authors' code knows other networks too.
    activation_fn: Literal["gelu"] = "gelu"
    relative_position_embedding: Literal[True] = True
    gru_rel_pos: Literal[True] = True

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for part in ("encoder_attention_heads", "conv_pos_groups"):
            if self.encoder_embed_dim % getattr(self, part):
                raise ValueError(f"encoder_embed_dim is not a multiple of {part}")
        if N_MELS % self.input_patch_size:
            raise ValueError(f"input_patch_size {self.input_patch_size} does not divide {N_MELS} mel bins")
        return self

    @property
    def freq_patches(self) -> int:
        """Patches on the frequency axis (8 of 16 mel bins)."""
        return N_MELS // self.input_patch_size

    @property
    def mean_level(self) -> float:
        """`fbank_mean` in the normalisation of `branches.frontend.fbank`: what a masked part is filled with."""
        return (self.fbank_mean - FBANK_MEAN) / (2 * FBANK_STD)

    @classmethod
    def from_cfg(cls, cfg: Mapping[str, Any]) -> Self:
        """The configuration in a checkpoint's `cfg`; keys that do not bear on the result are passed over.

        Raises InputError, naming the key, if one is missing or wrong, or asks for a network that is none of BEATs'.
        """
        left_out = {"relative_position_embedding": False, "gru_rel_pos": False}
        try:
            return cls.model_validate({**left_out, **cfg})
        except ValidationError as error:
            mistake = error.errors()[0]
        key, message = ".".join(map(str, mistake["loc"])), mistake["msg"].removeprefix("Value error, ")
        if mistake["type"] == "missing":
            raise InputError(f"cfg has no {key}; is this a BEATs checkpoint?")
        raise InputError(f"cfg: {key} is {mistake['input']!r}: {message}" if key else f"cfg: {message}")


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
