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

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from branches.spec import (
    BUILT_IN,
    LOG_MEL,
    PROJECTION,
    AttentiveStatisticsSpec,
    BackboneSpec,
    BranchSpec,
    EmbeddingSpec,
    FileSpec,
)
from orchestrator.yaml_loader import load_yaml
from scoring.detectors import DetectorSpec, MahalanobisSpec
from scoring.errors import InputError
from scoring.settings import Settings

SYSTEMS = Path(__file__).parent / "systems"
# Blocks of settings for all configurations, and in place of them with a built-in backbone.
_SHARED = ("branch", "tiny")
_SEED = "seed: unknown key here; a configuration lists its `seeds`"
# By key and pydantic's kind of error, where its message alone leaves people in the dark.
_REMEDIES = {
    ("seeds", "tuple_type"): "; list them, such as [0, 1, 2]",
    ("detector", "model_attributes_type"): "; a further detector is a further configuration of the same branch",
}
# What file systems and MLflow take as a name.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class ConfigurationSpec(Settings):
    """One training recipe, what is taken from its network, and one detector, for some seeds."""

    branch: BranchSpec = BranchSpec()
    embedding: EmbeddingSpec = PROJECTION
    detector: DetectorSpec = MahalanobisSpec()
    seeds: tuple[Annotated[int, Field(strict=True, ge=0, lt=2**31)], ...] = Field((0,), min_length=1)
    expected: float | None = Field(
        None, gt=0, lt=100, description="Omega in per cent that others published on the 2026 development set"
    )

    @model_validator(mode="after")
    def _detector_has_what_it_compares(self) -> ConfigurationSpec:
        pooling = self.branch.pooling_of(self.embedding)
        if self.branch.is_frozen and isinstance(pooling, AttentiveStatisticsSpec):
            raise ValueError(
                "frozen trains nothing, but the pooling attentive_statistics must be; use another one, or an embedding "
                "of patches"
            )
        if self.detector.uses_bands and not pooling.keeps_bands:
            raise ValueError(
                f"{self.detector.name} compares frequency bands, and the pooling {pooling.name} keeps none; take one "
                "that does, such as band_mean, or another detector"
            )
        return self

    @model_validator(mode="after")
    def _frozen_has_no_seeds(self) -> ConfigurationSpec:
        if self.branch.is_frozen and len(self.seeds) > 1:
            raise ValueError("frozen trains nothing, so all seeds would be the same branch; give one")
        return self

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("seeds must be distinct")
        return seeds


class SystemSpec(Settings):
    """A system: what is trained, how it is scored, and the tree along which it is fused."""

    name: Name
    description: str = ""
    subsystems: dict[Name, Annotated[dict[Name, ConfigurationSpec], Field(min_length=1)]] = Field(min_length=1)


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

    Raises
    ------
    InputError
        Naming the file, every key that is wrong and what is allowed there.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = SYSTEMS / f"{name_or_path}.yaml"
        if not path.exists() or path.parent != SYSTEMS:
            allowed = ", ".join(built_in_systems())
            raise InputError(f"unknown system {name_or_path!r}; give a YAML file or one of {allowed}")
    raw = _read_yaml(path)
    mistakes = _share_settings(raw, backbone in BUILT_IN)
    for override in overrides:
        _override(raw, override)
    try:
        system = SystemSpec.model_validate(raw)
    except ValidationError as error:
        mistakes += describe(error, SystemSpec)
    if mistakes := _once(mistakes, overrides):
        many = f"{len(mistakes)} mistakes\n" if len(mistakes) > 1 else ""
        raise InputError(f"{path}: {many}" + "\n".join(mistakes))
    if backbone is None:
        return system
    if backbone == LOG_MEL:
        raise InputError("log_mel is no network; name it in a frozen configuration of a system file, not as --backbone")
    other = {"path": backbone, "sha256": None}

    def replaced(file: FileSpec) -> FileSpec:
        network = isinstance(file, BackboneSpec) and file.path != LOG_MEL
        return file.model_copy(update=other) if network else file

    return with_files(system, replaced)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise InputError(
            f"{path}: a system file is a mapping with the keys name, description, subsystems, {', '.join(_SHARED)}"
        )
    return raw


def _share_settings(raw: dict[str, Any], built_in: bool) -> list[str]:
    """Copy the settings under `branch` into every configuration that does not say otherwise; what is wrong with them.

    With a built-in backbone those under `tiny` replace them, of the file and then of the configuration.

    Settings that are wrong are copied nowhere, so that each mistake is told once.
    """
    shared: dict[str, Any] = {}
    mistakes: list[str] = []
    for block in _SHARED:
        settings = raw.pop(block, None) or {}
        wrong = [f"{block}.{mistake}" for mistake in _mistakes_in(settings)]
        mistakes += wrong
        if not wrong and (block != "tiny" or built_in):
            shared.update(settings)
    subsystems = raw.get("subsystems")
    for configurations in subsystems.values() if isinstance(subsystems, dict) else []:
        for name in configurations if isinstance(configurations, dict) else []:
            configuration = configurations[name] = configurations[name] or {}
            settings = configuration.get("branch", {}) if isinstance(configuration, dict) else None
            if isinstance(settings, dict):
                mistakes += [f"{name}.branch.{_SEED}"] if settings.pop("seed", None) is not None else []
                tiny = configuration.pop("tiny", None) or {}
                mistakes += (wrong := [f"{name}.tiny.{mistake}" for mistake in _mistakes_in(tiny)])
                configuration["branch"] = {**shared, **settings, **(tiny if built_in and not wrong else {})}
    return mistakes


def _mistakes_in(settings: Any) -> list[str]:
    """What is wrong with a block of shared settings; that some do not go together a configuration may mend."""
    if isinstance(settings, dict) and "seed" in settings:
        return [_SEED]
    try:
        BranchSpec.model_validate(settings)
    except ValidationError as error:
        if not isinstance(settings, dict) or any(mistake["loc"] for mistake in error.errors()):
            return describe(error, BranchSpec)
    return []


def _override(raw: dict[str, Any], override: str) -> None:
    """Put `branch.training.steps=30` into every configuration."""
    key, equals, value = override.partition("=")
    if not equals or key.partition(".")[0] not in ConfigurationSpec.model_fields:
        allowed = ", ".join(ConfigurationSpec.model_fields)
        raise InputError(
            f"--set {override}: give KEY=VALUE, such as branch.training.steps=30; keys begin with {allowed}"
        )
    *parents, last = key.split(".")
    for configurations in raw.get("subsystems", {}).values():
        for name in configurations:
            settings = configurations[name] = {**(configurations[name] or {})}
            for parent in parents:
                within = settings.get(parent)
                # A choice that is given by its name alone, or by default, gets settings beside it.
                within = {"name": within} if isinstance(within, str) else {**(within or {})}
                settings[parent] = settings = within
            settings[last] = _value(override, value)


def _once(mistakes: list[str], overrides: Sequence[str]) -> list[str]:
    """The mistakes of overrides, which are in every configuration, once."""
    keys = [override.partition("=")[0] for override in overrides]
    named: dict[str, None] = {}
    for mistake in mistakes:
        setting = mistake.split(".", 3)[-1]  # without subsystems.<sub-system>.<configuration>
        key = setting.partition(":")[0]
        named[f"--set {setting}" if any(k.startswith(key) or key.startswith(k) for k in keys) else mistake] = None
    return list(named)


def _value(override: str, text: str) -> Any:
    try:
        return load_yaml(text)
    except yaml.YAMLError as error:
        raise InputError(f"--set {override}: {' '.join(str(error).split())}") from None


def with_files(system: SystemSpec, change: Callable[[FileSpec], FileSpec]) -> SystemSpec:
    """The system with every file of weights changed: the configurations' backbones and tokenizers."""

    def changed(c: ConfigurationSpec) -> ConfigurationSpec:
        update: dict[str, Any] = {"backbone": change(c.branch.backbone)}
        if (masked := c.branch.masked_prediction) is not None:
            tokenizers = tuple(change(file) for file in masked.tokenizers)
            update["masked_prediction"] = masked.model_copy(update={"tokenizers": tokenizers})
        return c.model_copy(update={"branch": c.branch.model_copy(update=update)})

    subsystems = {
        subsystem: {name: changed(c) for name, c in configurations.items()}
        for subsystem, configurations in system.subsystems.items()
    }
    return system.model_copy(update={"subsystems": subsystems})


def describe(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """What pydantic found, a line each: key, what is wrong, what is allowed."""
    errors = error.errors(include_url=False)
    # A list of which an element is wrong is called too short as well.
    inner = {mistake["loc"][:depth] for mistake in errors for depth in range(len(mistake["loc"]))}
    return [
        _described(mistake, model)
        for mistake in errors
        if mistake["type"] != "too_short" or mistake["loc"] not in inner
    ]


def _described(mistake: ErrorDetails, model: type[BaseModel]) -> str:
    key = ".".join(map(str, mistake["loc"])) or "the file"
    if mistake["type"] == "extra_forbidden":
        allowed = _allowed_keys(model, mistake["loc"])
        near = difflib.get_close_matches(str(mistake["loc"][-1]), allowed, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        return f"{key}: unknown key{meant}" + (f"; allowed: {', '.join(allowed)}" if allowed else "")
    remedy = _REMEDIES.get((str(mistake["loc"][-1:] and mistake["loc"][-1]), mistake["type"]), "")
    return f"{key}: {mistake['msg'].removeprefix('Value error, ')} (it is {mistake['input']!r}){remedy}"


def _allowed_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Keys that may stand where the unknown one at `location` stands, found along the JSON schema."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    for step in location[:-1]:
        schema = _resolve(_descend(schema, str(step)), definitions)
    shared = set(_SHARED) if model is SystemSpec and len(location) in (1, 4) else set()
    return sorted({*schema.get("properties", {}), *shared})


def _descend(schema: dict[str, Any], step: str) -> dict[str, Any]:
    if step in schema.get("properties", {}):
        return schema["properties"][step]
    mapping = schema.get("discriminator", {}).get("mapping", {})
    if step in mapping:  # pydantic puts the chosen member of a union into the location
        return {"$ref": mapping[step]}
    named = [*schema.get("patternProperties", {}).values(), schema.get("additionalProperties")]
    return next((s for s in named if isinstance(s, dict)), {})


def _resolve(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        return definitions[schema["$ref"].rsplit("/", 1)[-1]]
    return schema
