"""Branch specs: everything that determines a branch's embeddings, as typed settings.

Each choice (objective, strategy, pooling) is a settings class here with the class or function of the same
name in its own file; a new one is a class, an entry in the union and a test.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Channel = Literal["near", "far", "mean"]


class Settings(BaseModel):
    """Base of all settings: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BackboneSpec(Settings):
    """A BEATs checkpoint."""

    path: str = Field("tiny", description="path or URI of a checkpoint, or `tiny`: a small random network")
    sha256: str | None = Field(None, pattern="^[0-9a-f]{8,64}$", description="digest, or its first digits")


class SoftmaxSpec(Settings):
    """Cross-entropy of a linear classifier."""

    name: Literal["softmax"] = "softmax"


class ArcFaceSpec(Settings):
    """Additive angular margin."""

    name: Literal["arcface"] = "arcface"
    scale: float = Field(30.0, gt=0)
    margin: float = Field(0.5, ge=0, lt=1.5, description="radians added to the angle of the true class")


ObjectiveSpec = Annotated[SoftmaxSpec | ArcFaceSpec, Field(discriminator="name")]


class FullSpec(Settings):
    """The whole backbone is trained."""

    name: Literal["full"] = "full"


class PartialSpec(Settings):
    """The top layers of the backbone are trained, the rest stays as it was."""

    name: Literal["partial"] = "partial"
    layers: int = Field(ge=0, description="how many from the top, at most all; 0 trains pooling and head only")


StrategySpec = Annotated[FullSpec | PartialSpec, Field(discriminator="name")]


class AugmentationSpec(Settings):
    """SpecAugment: one masked stretch of frames and one of mel bands per clip, up to so many."""

    time_mask: int = Field(0, ge=0, description="frames of 10 ms")
    frequency_mask: int = Field(0, ge=0, lt=128, description="mel bands")


class TrainingSpec(Settings):
    """AdamW with linear warm-up and cosine decay."""

    steps: int = Field(10_000, ge=0)
    batch_size: int = Field(32, ge=2)
    crop_seconds: float = Field(10.0, gt=0.2, description="longer clips are cut at random, shorter ones padded")
    learning_rate: float = Field(1e-4, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    warmup_steps: int = Field(360, ge=0)
    gradient_clip: float = Field(1.0, gt=0, description="largest norm of the gradient")


class BranchSpec(Settings):
    """One branch. Two branches that differ in `seed` alone are of one configuration."""

    backbone: BackboneSpec = BackboneSpec()
    channel: Channel = "near"
    objective: ObjectiveSpec = ArcFaceSpec()
    strategy: StrategySpec = FullSpec()
    pooling: Literal["attentive_statistics", "mean", "band_mean"] = "attentive_statistics"
    embedding_dim: int = Field(256, ge=2)
    augmentation: AugmentationSpec = AugmentationSpec()
    training: TrainingSpec = TrainingSpec()
    seed: int = Field(0, ge=0)
