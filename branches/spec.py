"""Branch specs: everything that determines a branch's embeddings, as typed settings.

Each choice (objective, strategy, pooling) is a settings class here and a class or function in its own file,
bound together in that file's registry; a new one is a settings class, an entry in the union and in the
registry, and a test. In YAML a choice without settings may be given by its name alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from scoring.settings import Settings, by_name

# Raised by hand when the same spec, seed and clips come to give other numbers, and only then: every branch is trained,
# or every clip embedded, once more. The golden numbers of the tests say when that is so.
TRAINING_VERSION = 3  # weights: classes, batches, augmentation, losses, optimisation, generated clips
EMBEDDING_VERSION = 3  # embeddings of the same weights: decoding, channels, log-mels, encoder, pooling

Channel = Literal["near", "far", "mean", "cancel"]

LOG_MEL = "log_mel"
BUILT_IN = ("small", "tiny", LOG_MEL)  # backbones that are no files of the user's


def _by_path(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


class FileSpec(Settings):
    """A file of weights, which counts by its content and not by where it lies."""

    path: str
    sha256: str | None = Field(None, pattern="^[0-9a-f]{8,64}$", description="digest, or its first digits")


class BackboneSpec(FileSpec):
    """A BEATs checkpoint, and which of its layers the branch listens to."""

    path: str = Field(
        "tiny", description="a checkpoint's path or URI, `small`, `tiny` (random) or `log_mel` (no network)"
    )
    layers: tuple[int, ...] = Field((-1,), min_length=1, description="outputs to use: n-th layer, −1 the last")
    combine: Literal["concat", "mean"] = Field("concat", description="how several layers become one output")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the encoder when it embeds, in the run and in the packaged model"
    )


class SoftmaxSpec(Settings):
    """Cross-entropy of a linear classifier."""

    name: Literal["softmax"] = "softmax"


class ArcFaceSpec(Settings):
    """Additive angular margin."""

    name: Literal["arcface"] = "arcface"
    scale: float = Field(30.0, gt=0)
    margin: float = Field(0.5, ge=0, lt=1.5, description="radians added to the angle of the true class")


class SubcenterArcFaceSpec(ArcFaceSpec):
    """Additive angular margin to the nearest of several centres of a class."""

    name: Literal["subcenter_arcface"] = "subcenter_arcface"  # type: ignore[assignment]
    margin: float = Field(0.2, ge=0, lt=1.5, description="radians added to the angle of the true class")
    centres: int = Field(16, ge=1, description="centres of each class")
    of: Literal["all", "unattributed"] = Field(
        "all", description="classes with several centres: all, or those of machines without attributes"
    )


class AdaCosSpec(Settings):
    """Cosines with a scale that adapts itself to the training."""

    name: Literal["adacos"] = "adacos"


class SubclusterAdaCosSpec(Settings):
    """AdaCos with several clusters to each class, whose probabilities add up."""

    name: Literal["subcluster_adacos"] = "subcluster_adacos"
    clusters: int = Field(16, ge=1, description="clusters of each class")


ObjectiveSpec = Annotated[
    SoftmaxSpec | ArcFaceSpec | SubcenterArcFaceSpec | AdaCosSpec | SubclusterAdaCosSpec,
    Field(discriminator="name"),
    BeforeValidator(by_name),
]


class FrozenSpec(Settings):
    """Nothing is trained: the pooled output of the backbone is the embedding."""

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
    rank: int = Field(64, ge=1)
    alpha: float = Field(64.0, gt=0, description="adapters count alpha / rank")
    targets: tuple[Literal["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"], ...] = Field(
        ("q_proj", "v_proj"), min_length=1
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


class GeneralisedMeanSpec(_PoolingSettings):
    """Power mean, from the mean (1) towards the maximum."""

    name: Literal["generalised_mean"] = "generalised_mean"
    power: float = Field(3.0, gt=0)


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
    gamma: float = Field(6.0, ge=0, description="0 is the mean")


_Untrained = MeanSpec | GeneralisedMeanSpec | BandMeanSpec | BandStatisticsSpec | RelativeDeviationSpec
UntrainedPoolingSpec = Annotated[_Untrained, Field(discriminator="name"), BeforeValidator(by_name)]
PoolingSpec = Annotated[_Untrained | AttentiveStatisticsSpec, Field(discriminator="name"), BeforeValidator(by_name)]


class ProjectionSpec(Settings):
    """What the training head gives: its pooling and projection; of a frozen branch the pooled patches."""

    source: Literal["projection"] = "projection"


class PatchesSpec(Settings):
    """Patches before the training head, with a pooling of their own."""

    source: Literal["patches"] = "patches"
    layers: tuple[int, ...] = Field((-1,), min_length=1, description="outputs to use: n-th layer, −1 the last")
    combine: Literal["concat", "mean"] = Field("concat", description="how several layers become one output")
    pooling: UntrainedPoolingSpec = BandMeanSpec()


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
    pooling: UntrainedPoolingSpec = MeanSpec()


class ClassesSpec(Settings):
    """What the classes are that a branch learns to tell apart, and how often each is heard."""

    pseudo_labels: Annotated[int, Field(ge=0)] | PseudoLabelsSpec = Field(
        0, description="clusters of a machine and section without attributes; 0 leaves them one class"
    )
    domain: bool = Field(False, description="whether source and target of the same attributes are two classes")
    balance: float = Field(0.0, ge=0, le=1, description="0 hears all clips equally often, 1 all classes")

    @property
    def clusters(self) -> PseudoLabelsSpec:
        """The pseudo-labels in full: a number alone is that of either domain."""
        given = self.pseudo_labels
        return PseudoLabelsSpec(source=given, target=given) if isinstance(given, int) else given


class NoiseSpec(Settings):
    """Other recordings mixed into training clips."""

    probability: float = Field(0.5, ge=0, le=1)
    snr_db: tuple[float, ...] = Field((5.0, 10.0, 15.0, 20.0), min_length=1, description="one of these is drawn")
    source: Literal["far", "supplemental"] = Field(
        "far", description="far microphone of other clips of the machine, or noise clips of its `supplemental` folder"
    )


class MixupSpec(Settings):
    """Two clips and their labels are mixed."""

    probability: float = Field(0.5, ge=0, le=1)
    alpha: float = Field(1.0, gt=0, description="shares are drawn from Beta(alpha, alpha)")


class TrainingSpec(Settings):
    """AdamW with linear warm-up and cosine decay."""

    steps: int = Field(10_000, ge=0)
    batch_size: int = Field(32, ge=2)
    accumulation: int = Field(1, ge=1, description="batches whose gradients make one step")
    crop_seconds: float = Field(10.0, gt=0.2, description="longer clips are cut at random, shorter ones padded")
    learning_rate: float = Field(1e-4, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    warmup_steps: int = Field(360, ge=0)
    gradient_clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    average: float = Field(0.0, ge=0, lt=1, description="decay of the moving average of the weights; 0 keeps the last")


class GeneratorSpec(TrainingSpec):
    """A generator of log-mels: its network, its training, what it samples and what is kept of that.

    The defaults are for a GPU and clips of 10 s. It hears the channel that the branch hears.
    """

    width: int = Field(512, ge=8, description="channels of the network")
    depth: int = Field(8, ge=1, description="blocks of the network")
    kernel: int = Field(15, ge=1, description="tokens of 40 ms that a block mixes")
    condition_dropout: float = Field(0.1, ge=0, lt=1, description="share of training clips without their condition")

    steps: int = Field(20_000, ge=1)
    batch_size: int = Field(64, ge=2)
    crop_seconds: float = Field(10.0, gt=0.2, description="length of a sample; at most that of the shortest clip")
    learning_rate: float = Field(3e-4, gt=0)
    warmup_steps: int = Field(500, ge=0)

    fill: float = Field(0.5, gt=0, le=1, description="conditions rarer than this share of the commonest get samples")
    strength: float = Field(0.3, gt=0, le=1, description="how much of the reference becomes noise; 1 is all of it")
    guidance: float = Field(1.5, ge=0, description="1 follows the condition as learnt, more overstates it")
    sampling_steps: int = Field(20, ge=1, description="Heun steps from the noisy reference to a sample")

    copy_below: float = Field(0.5, ge=0, description="nearer to a real clip than this, a sample is a copy")
    far_above: float = Field(2.0, gt=0, description="further from its condition's clips than this, it is an outlier")
    seed: int = Field(0, ge=0)


class AugmentationSpec(Settings):
    """What is done to training clips; everything is off unless given."""

    time_mask: int = Field(0, ge=0, description="SpecAugment: longest masked stretch, frames of 10 ms")
    frequency_mask: int = Field(0, ge=0, lt=128, description="SpecAugment: widest masked stretch, mel bands")
    gain_db: float = Field(0.0, ge=0, description="level changes at random by up to so much")
    speed: float = Field(0.0, ge=0, lt=0.5, description="speed and pitch change by up to this share")
    noise: NoiseSpec | None = None
    mixup: MixupSpec | None = None
    generated: GeneratorSpec | None = Field(None, description="train on generated clips of rare conditions, too")


class MaskedPredictionSpec(Settings):
    """Auxiliary loss: tell the tokenizers' labels of masked patches (our reading of the report's dual tokenizer)."""

    tokenizers: tuple[Annotated[FileSpec, BeforeValidator(_by_path)], ...] = Field(
        (FileSpec(path="random:0"), FileSpec(path="random:1")),
        min_length=1,
        description="released tokenizers (path, sha256), or random:SEED",
    )
    weight: float = Field(0.5, gt=0, description="of the loss beside the objective's")
    mask: float = Field(0.3, gt=0, lt=1, description="share of patches that are masked")


class BranchSpec(Settings):
    """One branch. Two branches that differ in `seed` alone are of one configuration."""

    backbone: Annotated[BackboneSpec, BeforeValidator(_by_path)] = BackboneSpec()
    channel: Channel = "near"
    machines: tuple[str, ...] | None = Field(
        None, min_length=1, description="machines to train on; the others are only embedded. All unless given"
    )
    classes: ClassesSpec = ClassesSpec()
    objective: ObjectiveSpec = ArcFaceSpec()
    masked_prediction: MaskedPredictionSpec | None = None
    strategy: StrategySpec = FullSpec()
    pooling: PoolingSpec = AttentiveStatisticsSpec()
    embedding_dim: int = Field(256, ge=2)
    augmentation: AugmentationSpec = AugmentationSpec()
    training: TrainingSpec = TrainingSpec()
    seed: int = Field(0, ge=0)

    @property
    def is_frozen(self) -> bool:
        """Whether nothing is trained."""
        return isinstance(self.strategy, FrozenSpec)

    def as_used(self, embedding: EmbeddingSpec = PROJECTION) -> BranchSpec:
        """The spec with what a frozen branch ignores at its defaults, so that equal branches have equal specs.

        Where patches are asked for, that is its layers and its pooling, too.
        """
        if not self.is_frozen:
            return self
        backbone, pooling = self.backbone, self.pooling
        if isinstance(embedding, PatchesSpec):
            plain = backbone.model_dump(exclude={"layers", "combine"})
            backbone, pooling = BackboneSpec.model_validate(plain), MeanSpec()
        return BranchSpec(backbone=backbone, channel=self.channel, strategy=self.strategy, pooling=pooling)

    def resolved(self, embedding: EmbeddingSpec) -> EmbeddingSpec:
        """What an embedding comes to: of a frozen branch, which has no head, patches in any case."""
        if not self.is_frozen or isinstance(embedding, PatchesSpec):
            return embedding
        settings = {"pooling": self.pooling, "layers": self.backbone.layers, "combine": self.backbone.combine}
        return PatchesSpec.model_validate(settings)

    def pooling_of(self, embedding: EmbeddingSpec) -> PoolingSpec:
        """The pooling of an embedding: its own, or that of the training head."""
        return embedding.pooling if isinstance(embedding, PatchesSpec) else self.pooling

    def frozen_inputs(self, embeddings: Sequence[EmbeddingSpec]) -> list[FrozenInput]:
        """What the branch needs of its backbone as it is: its embeddings if it is frozen, or those of its classes."""
        if self.is_frozen:
            return [(self, self.resolved(embedding)) for embedding in embeddings]
        if self.classes.pseudo_labels:
            plain = BackboneSpec(path=self.backbone.path, sha256=self.backbone.sha256)
            clusters = self.classes.clusters
            channel = clusters.channel or self.channel
            frozen = BranchSpec(backbone=plain, channel=channel, strategy=FrozenSpec(), pooling=MeanSpec())
            return [(frozen, PatchesSpec(pooling=clusters.pooling))]
        return []


# An embedding of all clips by a backbone that is not trained.
FrozenInput = tuple[BranchSpec, EmbeddingSpec]
