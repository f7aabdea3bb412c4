"""System specs: a YAML file with a name and a tree sub-system → configuration → seeds.

name: mine
branch:                     # settings that all configurations share
  channel: near
tiny:                       # what replaces shared settings with `--backbone tiny` or `small`
  training: {steps: 50}
subsystems:
  beats:
    arcface:                # a configuration
      branch: {objective: {name: arcface, margin: 0.3}}   # replaces the shared setting of that name
      embedding: {source: patches, pooling: band_mean}      # in place of what the training head gives
      tiny: {objective: softmax}                            # replaces settings of `branch` here, and of all, likewise
      detector: {name: mahalanobis}
      seeds: [0, 1, 2]
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, Field, ValidationError, field_validator

from branches.spec import (
    BUILT_IN,
    LOG_MEL,
    PROJECTION,
    AttentiveStatisticsSpec,
    BranchSpec,
    EmbeddingSpec,
    PatchesSpec,
    PoolingSpec,
)
from scoring.detectors import DetectorSpec, MahalanobisSpec
from scoring.errors import InputError
from scoring.settings import Settings

SYSTEMS = Path(__file__).parent / "systems"
# In place of pydantic's messages that are for readers of Python, by their kind.
_PLAINLY = {
    "tuple_type": "Input should be a list, such as [0, 1, 2]",
    "model_attributes_type": "Input should be one choice, by its name or with its settings; "
    "a further one is a further configuration",
    "dict_type": "Input should be a mapping",
    "union_tag_not_found": "Input should have a `name` beside its settings",
}
# What file systems and MLflow take as a name.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
_Model = TypeVar("_Model", bound=BaseModel)


def _without_seed(branch: BranchSpec) -> BranchSpec:
    if branch.seed:
        raise ValueError("seed is not given here; a configuration lists its `seeds`")
    return branch


Recipe = Annotated[BranchSpec, AfterValidator(_without_seed)]


class ConfigurationSpec(Settings):
    """One training recipe, what is taken from its network, and one detector, for some seeds."""

    branch: Recipe = BranchSpec()
    embedding: EmbeddingSpec = Field(PROJECTION, description="what is scored of the network")
    detector: DetectorSpec = Field(MahalanobisSpec(), description="how that is scored")
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(
        (0,), min_length=1, description="one branch for each"
    )
    expected: float | None = Field(
        None, gt=0, lt=100, description="Omega in per cent that others published on the 2026 development set"
    )

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("seeds must be distinct")
        return seeds

    @property
    def pooling(self) -> PoolingSpec:
        """The pooling of what is scored."""
        return self.embedding.pooling if isinstance(self.embedding, PatchesSpec) else self.branch.pooling


def _as_used(c: ConfigurationSpec) -> ConfigurationSpec:
    """Patches are of the backbone's layers unless it is said of which; of a frozen branch there is nothing else.

    Of its settings those stay that `model_dump` has, which count, so that equal branches have equal specs.
    """
    branch, embedding, layers = c.branch, c.embedding, c.branch.backbone.layers
    if isinstance(embedding, PatchesSpec):
        if "layers" not in embedding.model_fields_set:
            embedding = embedding.model_copy(update={"layers": layers})
    elif branch.is_frozen:
        if isinstance(branch.pooling, AttentiveStatisticsSpec):
            raise ValueError(
                "frozen trains nothing, but the pooling attentive_statistics must be; use another one, or an embedding "
                "of patches"
            )
        embedding = PatchesSpec(layers=layers, pooling=branch.pooling)
    if branch.is_frozen:
        branch = BranchSpec.model_validate(branch.model_dump())
    return c.model_copy(update={"branch": branch, "embedding": embedding})


def _settings_go_together(c: ConfigurationSpec) -> ConfigurationSpec:
    branch, noise = c.branch, c.branch.augmentation.noise
    if branch.is_frozen and len(c.seeds) > 1:
        raise ValueError("frozen trains nothing, so all seeds would be the same branch; give one")
    if not branch.is_frozen and branch.backbone.path == LOG_MEL:
        raise ValueError("backbone log_mel has no weights to train; its strategy must be frozen")
    if branch.channel == "cancel" and noise is not None and noise.source == "far":
        raise ValueError("far noise is what the channel cancel removes; leave out augmentation.noise")
    if c.detector.uses_bands and not c.pooling.keeps_bands:
        raise ValueError(
            f"{c.detector.name} compares frequency bands, and the pooling {c.pooling.name} keeps none; take one "
            "that does, such as band_mean, or another detector"
        )
    return c


Configuration = Annotated[ConfigurationSpec, AfterValidator(_as_used), AfterValidator(_settings_go_together)]


class SystemSpec(Settings):
    """A system: what is trained, how it is scored, and the tree along which it is fused."""

    name: Name
    description: str = ""
    subsystems: dict[Name, Annotated[dict[Name, Configuration], Field(min_length=1)]] = Field(min_length=1)

    @property
    def tables(self) -> list[str]:
        """What its score tables are called: `sub-system/configuration/seed`."""
        of = [(f"{s}/{name}", c) for s, configurations in self.subsystems.items() for name, c in configurations.items()]
        return [f"{name}/{seed}" for name, c in of for seed in c.seeds]


class _ConfigurationInFile(ConfigurationSpec):
    tiny: Recipe = BranchSpec()


class _SystemInFile(Settings):
    """A file as it is written; which settings go together shows when configurations have those that all share."""

    name: Name
    description: str = ""
    branch: Recipe = BranchSpec()
    tiny: Recipe = BranchSpec()
    subsystems: dict[Name, dict[Name, _ConfigurationInFile]]

    def shared_out(self, backbone: str | None) -> dict[str, Any]:
        """Settings of the `SystemSpec` with a backbone; where it is built in, those under `tiny` replace others."""
        settings = self.model_dump(exclude_unset=True)
        branch, tiny = settings.pop("branch", {}), settings.pop("tiny", {})
        for configuration in _configurations(settings):
            own, own_tiny = configuration.pop("branch", {}), configuration.pop("tiny", {})
            blocks = (branch, tiny, own, own_tiny) if backbone in BUILT_IN else (branch, own)
            configuration["branch"] = used = {key: value for block in blocks for key, value in block.items()}
            file = used.get("backbone", {})
            if backbone is not None and file.get("path") != LOG_MEL:
                used["backbone"] = {**file, "path": backbone, "sha256": None}
        return settings


def _configurations(settings: dict[str, Any]) -> list[dict[str, Any]]:
    return [c for configurations in settings["subsystems"].values() for c in configurations.values()]


def built_in_systems() -> list[str]:
    """Names of the systems that come with tutti."""
    return sorted(path.stem for path in SYSTEMS.glob("*.yaml"))


def load_systems(
    names_or_paths: Sequence[str], backbone: str | None = None, overrides: Sequence[str] = ()
) -> list[SystemSpec]:
    """Several systems; see `load_system`. Two different ones of the same name are an error."""
    loaded = [load_system(name, backbone, overrides) for name in names_or_paths]
    systems = {system.name: system for system in loaded}
    if len(systems) < len(set(names_or_paths)):
        raise InputError(f"two of {', '.join(names_or_paths)} have the same name; give each system its own")
    return list(systems.values())


def load_system(name_or_path: str, backbone: str | None = None, overrides: Sequence[str] = ()) -> SystemSpec:
    """A built-in system by name, or a YAML file.

    Parameters
    ----------
    name_or_path: e.g. `s1`, or `my/system.yaml`
    backbone: checkpoint, URI or built-in name to use in place of every configuration's own
    overrides: settings of every configuration as `branch.training.steps=30`, the value in YAML

    Raises InputError, naming the file, every key that is wrong and what is allowed there.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = SYSTEMS / f"{name_or_path}.yaml"
        if not path.exists() or path.parent != SYSTEMS:
            allowed = ", ".join(built_in_systems())
            raise InputError(f"unknown system {name_or_path!r}; give a YAML file or one of {allowed}")
    if backbone == LOG_MEL:
        raise InputError("log_mel is no network; name it in a frozen configuration of a system file, not as --backbone")
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    in_file = validated(_SystemInFile, _parsed(text, str(path)), str(path))
    settings = in_file.shared_out(backbone)
    system = validated(SystemSpec, settings, str(path))
    if overrides:
        for override in overrides:
            _override(settings, override)
        system = validated(SystemSpec, settings, f"{path} with --set", from_depth=3)
    return system


class _Loader(yaml.SafeLoader):
    """Reads text and nothing else, of which pydantic makes numbers and truth values where they are due.

    So nothing is other than it looks like, as `no`, `010` and `1:30` are in YAML 1.1.
    """

    yaml_constructors = {"tag:yaml.org,2002:null": yaml.SafeLoader.construct_yaml_null}  # noqa: RUF012

    def _refused(self, suffix: str, node: yaml.Node) -> None:
        raise yaml.MarkedYAMLError(problem=f"unknown tag {node.tag}", problem_mark=node.start_mark)

    yaml_multi_constructors = {"!": _refused, "tag:yaml.org,2002:python/": _refused}  # noqa: RUF012

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise yaml.MarkedYAMLError(problem=f"{', '.join(twice)} appears twice", problem_mark=node.start_mark)
        return node


def _parsed(text: str | bytes, where: str) -> Any:
    try:
        return _Loader(text).get_single_data()
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{where}: not YAML: {' '.join(str(error).split())}") from None


def _override(settings: dict[str, Any], override: str) -> None:
    """Put `branch.training.steps=30` into every configuration."""
    key, equals, value = override.partition("=")
    if not equals:
        raise InputError(f"--set {override!r}: give KEY=VALUE, such as branch.training.steps=30")
    parsed = _parsed(value, f"--set {override!r}")
    *parents, last = key.split(".")
    for block in _configurations(settings):
        for parent in parents:
            if not isinstance(block.get(parent), dict):
                block[parent] = {}  # where none should stand, it is refused as such
            block = block[parent]
        block[last] = parsed


def stored(model: type[_Model], settings: Any, where: object) -> _Model:
    """Settings that a run has kept; raises InputError if they are of a version of tutti with other ones."""
    try:
        return model.model_validate(settings)
    except ValidationError:
        raise InputError(f"{where}: made by another version of tutti; repeat the `tutti run` that made it") from None


def validated(model: type[_Model], settings: Any, where: str, from_depth: int = 0) -> _Model:
    """Settings as a model; mistakes that differ only in keys above a depth are told once, without these."""
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        found = _mistakes(error, settings, from_depth)
    # Of a list or mapping in which something is wrong, that alone is told.
    inner = [key for key in found if not any(other.startswith(f"{key}.") for other in found)]
    lines = [": ".join(filter(None, [where, key, " or ".join(found[key])])) for key in inner]
    raise InputError("\n".join(" ".join(line.split()) for line in lines))


def _mistakes(error: ValidationError, settings: Any, from_depth: int) -> dict[str, list[str]]:
    """What pydantic found at each key, such as `subsystems.beats.arcface.seeds`."""
    found: dict[str, list[str]] = {}
    for mistake in error.errors():
        keys, value = [], settings
        for step in mistake["loc"]:
            try:
                value = value[step]
            except (LookupError, TypeError):
                if mistake["type"] != "missing" and step != "[key]":
                    continue  # not a key of the user's: the chosen member of a union
            keys.append(str(step))
        message = _PLAINLY.get(mistake["type"], mistake["msg"].removeprefix("Value error, "))
        if mistake["type"] not in ("missing", "extra_forbidden", "value_error"):
            message += f" (it is {reprlib.repr(mistake['input'])})"
        messages = found.setdefault(".".join(keys[from_depth:]), [])
        if message not in messages:
            messages.append(message)
    return found
