"""Branch specs: everything that determines a branch's weights, and what is then taken from its network.

Each choice (objective, strategy, pooling) is a settings class here, an entry in its union, and what it does in a file
of its own. In YAML a choice without settings may be given by its name alone. The descriptions are the documentation:
`tutti show --settings` prints them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, SerializationInfo, SerializerFunctionWrapHandler, model_serializer

from scoring.settings import Settings, by_name

# Raised by hand when the same spec, seed and clips come to give other numbers, and only then: every branch is trained,
# or every clip embedded, once more. The golden numbers of the tests say when that is so.
TRAINING_VERSION = 4  # weights: classes, batches, augmentation, losses, optimisation, generated clips
EMBEDDING_VERSION = 4  # embeddings of the same weights: decoding, channels, log-mels, encoder, pooling

Channel = Literal["near", "far", "mean", "cancel"]

LOG_MEL = "log_mel"
BUILT_IN = ("small", "tiny", LOG_MEL)  # backbones that are no files of the user's


def _by_path(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


Layers = Annotated[
    tuple[int, ...],
    Field(min_length=1, description="outputs to use, side by side: of the n-th layer; 0 its input, −1 the last"),
]


class FileSpec(Settings):
    """A file of weights, which counts by its content and not by where it lies."""

    path: str
    sha256: str | None = Field(None, pattern="^[0-9a-f]{8,64}$", description="digest, or its first digits")


class BackboneSpec(FileSpec):
    """A BEATs checkpoint, and which of its layers the branch listens to."""

    path: str = Field(
        "tiny",
        description="a checkpoint's name (`tutti backbones`), path or URI; `small`, `tiny` (random) or `log_mel`",
    )
    layers: Layers = (-1,)
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the encoder when it embeds, in the run and in the packaged model"
    )


class SoftmaxSpec(Settings):
    """Cross-entropy of a linear classifier."""

    name: Literal["softmax"] = "softmax"


class ArcFaceSpec(Settings):
    """Additive angular margin."""

    name: Literal["arcface"] = "arcface"
    scale: float = Field(30.0, gt=0, description="of the cosines, before the softmax")
    margin: float = Field(0.5, ge=0, lt=1.5, description="radians added to the angle of the true class")


class SubcenterArcFaceSpec(ArcFaceSpec):
    """Additive angular margin to the nearest of several centres of a class."""

    name: Literal["subcenter_arcface"] = "subcenter_arcface"  # type: ignore[assignment]
    margin: float = Field(0.2, ge=0, lt=1.5, description="radians added to the angle of the true class")
    centres: int = Field(16, ge=1, description="centres of each class")
    of: Literal["all", "unattributed"] = Field(
        "all", description="classes with several centres: all, or those of machines without attributes"
    )


class SubclusterAdaCosSpec(Settings):
    """Cosines to several clusters of a class, whose probabilities add up; the scale adapts itself to the training."""

    name: Literal["subcluster_adacos"] = "subcluster_adacos"
    clusters: int = Field(16, ge=1, description="clusters of each class; 1 is AdaCos")


ObjectiveSpec = Annotated[
    SoftmaxSpec | ArcFaceSpec | SubcenterArcFaceSpec | SubclusterAdaCosSpec,
    Field(discriminator="name"),
    BeforeValidator(by_name),
]


class FrozenSpec(Settings):
    """Nothing is trained; `embedding` says what is taken from the backbone."""

    name: Literal["frozen"] = "frozen"


class HeadSpec(Settings):
    """Pooling and projection are trained, the backbone stays as it was."""

    name: Literal["head"] = "head"


class PartialSpec(Settings):
    """The top layers of the backbone are trained too."""

    name: Literal["partial"] = "partial"
    layers: int = Field(ge=0, description="how many from the top, at most all; 0 is the same as `head`")


class FullSpec(Settings):
    """The whole backbone is trained."""

    name: Literal["full"] = "full"
    layer_decay: float = Field(1.0, gt=0, le=1, description="learning rate of a layer over that of the one above")


class LoraSpec(Settings):
    """Low-rank adapters of the backbone's projections are trained."""

    name: Literal["lora"] = "lora"
    rank: int = Field(64, ge=1, description="of the adapters")
    alpha: float = Field(64.0, gt=0, description="adapters count alpha / rank")
    targets: tuple[Literal["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"], ...] = Field(
        ("q_proj", "v_proj"), min_length=1, description="projections of each layer that have adapters"
    )


StrategySpec = Annotated[
    FrozenSpec | HeadSpec | PartialSpec | FullSpec | LoraSpec, Field(discriminator="name"), BeforeValidator(by_name)
]


class _PoolingSettings(Settings):
    """What all poolings have."""

    keeps_bands: ClassVar[bool] = False  # a vector for each frequency band, or one for the clip


class MeanSpec(_PoolingSettings):
    """Mean over all patches."""

    name: Literal["mean"] = "mean"


class AttentiveStatisticsSpec(_PoolingSettings):
    """Mean and standard deviation, weighted by a trained attention."""

    name: Literal["attentive_statistics"] = "attentive_statistics"


class BandMeanSpec(_PoolingSettings):
    """Mean over time of each frequency band."""

    keeps_bands: ClassVar[bool] = True

    name: Literal["band_mean"] = "band_mean"


class BandStatisticsSpec(_PoolingSettings):
    """Mean and standard deviation over time of each frequency band."""

    keeps_bands: ClassVar[bool] = True

    name: Literal["band_statistics"] = "band_statistics"


class RelativeDeviationSpec(_PoolingSettings):
    """Mean over time of each frequency band, weighted towards what departs from it."""

    keeps_bands: ClassVar[bool] = True

    name: Literal["relative_deviation"] = "relative_deviation"
    gamma: float = Field(6.0, ge=0, description="weights (1 + d / d_max)^γ, d from the mean; 0 is the mean")


_Untrained = MeanSpec | BandMeanSpec | BandStatisticsSpec | RelativeDeviationSpec
UntrainedPoolingSpec = Annotated[_Untrained, Field(discriminator="name"), BeforeValidator(by_name)]
PoolingSpec = Annotated[_Untrained | AttentiveStatisticsSpec, Field(discriminator="name"), BeforeValidator(by_name)]


class ProjectionSpec(Settings):
    """What the training head gives: its pooling and projection."""

    source: Literal["projection"] = "projection"


class PatchesSpec(Settings):
    """Patches before the training head, with a pooling of their own."""

    source: Literal["patches"] = "patches"
    layers: Layers = Field((-1,), description="outputs to use, as of the backbone; its own unless given")
    pooling: UntrainedPoolingSpec = Field(BandMeanSpec(), description="of the patches")


def _by_source(value: Any) -> Any:
    """`projection` or `patches` alone, or settings of patches, which alone have some."""
    if isinstance(value, str):
        return {"source": value}
    return {"source": "patches", **value} if isinstance(value, dict) else value


EmbeddingSpec = Annotated[ProjectionSpec | PatchesSpec, Field(discriminator="source"), BeforeValidator(_by_source)]
PROJECTION = ProjectionSpec()


class PseudoLabelsSpec(Settings):
    """Clusters of a machine and section without attributes, by k-means on embeddings of the backbone as it is."""

    source: int = Field(7, ge=1, description="clusters of the source clips, at most")
    target: int = Field(1, ge=1, description="clusters of the target clips, at most")
    channel: Channel | None = Field(None, description="that is clustered; the branch's unless given")
    pooling: UntrainedPoolingSpec = Field(MeanSpec(), description="of what is clustered")


class ClassesSpec(Settings):
    """What the classes are that a branch learns to tell apart."""

    pseudo_labels: PseudoLabelsSpec | None = Field(
        None, description="clusters in place of the attributes of machines without; these are one class unless given"
    )
    domain: bool = Field(False, description="whether source and target of the same attributes are two classes")


class NoiseSpec(Settings):
    """Other recordings mixed into training clips."""

    probability: float = Field(0.5, ge=0, le=1, description="of a clip to get noise")
    snr_db: tuple[float, ...] = Field(
        (5.0, 10.0, 15.0, 20.0), min_length=1, description="signal over noise; one of these is drawn"
    )
    source: Literal["far", "supplemental"] = Field(
        "far", description="far microphone of other clips of the machine, or noise clips of its `supplemental` folder"
    )


class MixupSpec(Settings):
    """Two clips and their labels are mixed, in any shares."""

    probability: float = Field(0.5, ge=0, le=1, description="of a clip to be mixed with another one")


class TrainingSpec(Settings):
    """AdamW with linear warm-up and cosine decay."""

    steps: int = Field(10_000, ge=0, description="of the optimiser")
    batch_size: int = Field(32, ge=2, description="clips")
    accumulation: int = Field(1, ge=1, description="batches whose gradients make one step")
    crop_seconds: float = Field(10.0, gt=0.2, description="longer clips are cut at random, shorter ones padded")
    learning_rate: float = Field(1e-4, gt=0, description="at its highest, after the warm-up")
    weight_decay: float = Field(1e-2, ge=0, description="of AdamW")
    warmup_steps: int = Field(360, ge=0, description="over which the learning rate rises")
    average: float = Field(0.0, ge=0, lt=1, description="decay of the moving average of the weights; 0 keeps the last")


class GeneratorSpec(Settings):
    """A generator of log-mels: its network, its training, what it samples and what is kept of that.

    The defaults are for a GPU and clips of 10 s. It hears the channel that the branch hears.
    """

    width: int = Field(512, ge=8, description="channels of the network")
    depth: int = Field(8, ge=1, description="blocks of the network")

    steps: int = Field(20_000, ge=1, description="of the optimiser")
    batch_size: int = Field(64, ge=2, description="clips")
    crop_seconds: float = Field(10.0, gt=0.2, description="length of a sample; at most that of the shortest clip")
    learning_rate: float = Field(3e-4, gt=0, description="at its highest, after the warm-up")
    warmup_steps: int = Field(500, ge=0, description="over which the learning rate rises")

    fill: float = Field(0.5, gt=0, le=1, description="states rarer than this share of the commonest get samples")
    strength: float = Field(0.3, gt=0, le=1, description="how much of the reference becomes noise; 1 is all of it")
    sampling_steps: int = Field(20, ge=1, description="Heun steps from the noisy reference to a sample")

    copy_below: float = Field(0.5, ge=0, description="nearer to a real clip than this, a sample is a copy")
    far_above: float = Field(2.0, gt=0, description="further from its state's clips than this, it is an outlier")
    seed: int = Field(0, ge=0, description="of weights, batches and samples")

    @property
    def training(self) -> TrainingSpec:
        """The settings of its training as a branch has them; what has none here is as by default."""
        return TrainingSpec(**self.model_dump(include=set(TrainingSpec.model_fields)))


class AugmentationSpec(Settings):
    """What is done to training clips; everything is off unless given."""

    time_mask: int = Field(0, ge=0, description="SpecAugment: longest masked stretch, frames of 10 ms")
    frequency_mask: int = Field(0, ge=0, lt=128, description="SpecAugment: widest masked stretch, mel bands")
    noise: NoiseSpec | None = Field(None, description="other recordings mixed into training clips")
    mixup: MixupSpec | None = Field(None, description="two clips and their labels mixed")
    generated: GeneratorSpec | None = Field(None, description="train on generated clips of rare operating states, too")


class MaskedPredictionSpec(Settings):
    """Auxiliary loss: tell the tokenizers' labels of masked patches (our reading of the report's dual tokenizer)."""

    tokenizers: tuple[Annotated[FileSpec, BeforeValidator(_by_path)], ...] = Field(
        (FileSpec(path="random:0"), FileSpec(path="random:1")),
        min_length=1,
        description="released tokenizers (path, sha256), or random:SEED",
    )


class BranchSpec(Settings):
    """One branch. Two branches that differ in `seed` alone are of one configuration."""

    backbone: Annotated[BackboneSpec, BeforeValidator(_by_path)] = BackboneSpec()
    channel: Channel = Field("near", description="that is heard; `cancel` is near without what far predicts of it")
    strategy: StrategySpec = Field(FullSpec(), description="what is trained")
    pooling: PoolingSpec = Field(AttentiveStatisticsSpec(), description="of the training head")
    embedding_dim: int = Field(256, ge=2, description="length of the training head's projection")
    classes: ClassesSpec = ClassesSpec()
    objective: ObjectiveSpec = Field(ArcFaceSpec(), description="loss of the classes")
    masked_prediction: MaskedPredictionSpec | None = Field(None, description="auxiliary loss, the dual tokenizer")
    augmentation: AugmentationSpec = AugmentationSpec()
    training: TrainingSpec = TrainingSpec()
    seed: int = Field(0, ge=0, description="not given here: a configuration lists its `seeds`")

    @model_serializer(mode="wrap")
    def _what_counts(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """Of a frozen branch nothing else is shown or kept; what a file says beside, when it is read, is its own."""
        settings: dict[str, Any] = handler(self)
        if not self.is_frozen or info.exclude_unset:
            return settings
        settings.get("backbone", {}).pop("layers", None)
        return {key: value for key, value in settings.items() if key in ("backbone", "channel", "strategy", "seed")}

    @property
    def is_frozen(self) -> bool:
        """Whether nothing is trained."""
        return isinstance(self.strategy, FrozenSpec)

    @property
    def files(self) -> tuple[FileSpec, ...]:
        """The backbone, and the tokenizers if there are any."""
        return (self.backbone, *(self.masked_prediction.tokenizers if self.masked_prediction else ()))

    def frozen_inputs(self, embeddings: Sequence[EmbeddingSpec]) -> list[FrozenInput]:
        """What the branch needs of its backbone as it is: its embeddings if it is frozen, or those of its classes."""
        if self.is_frozen:
            return [(self, embedding) for embedding in embeddings]
        if clusters := self.classes.pseudo_labels:
            backbone = BackboneSpec(path=self.backbone.path, sha256=self.backbone.sha256)
            frozen = BranchSpec(backbone=backbone, channel=clusters.channel or self.channel, strategy=FrozenSpec())
            return [(frozen, PatchesSpec(layers=self.backbone.layers, pooling=clusters.pooling))]
        return []


# An embedding of all clips by a backbone that is not trained.
FrozenInput = tuple[BranchSpec, EmbeddingSpec]
