"""System specs: a YAML file with a name and a tree sub-system → configuration → seeds.

name: mine
branch:                     # settings that all configurations share
  channel: near
tiny:                       # what replaces shared settings with `--backbone tiny`
  training: {steps: 50}
subsystems:
  beats:
    arcface:                # a configuration
      branch: {objective: {name: arcface, margin: 0.3}}   # replaces the shared setting of that name
      detector: {name: mahalanobis}
      seeds: [0, 1, 2]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from branches.spec import BackboneSpec, BranchSpec, FileSpec, Settings
from scoring.detectors import DetectorSpec, MahalanobisSpec
from scoring.errors import InputError

SYSTEMS = Path(__file__).parent / "systems"
# Blocks of settings for all configurations, and in place of them with the built-in tiny backbone.
_SHARED = ("branch", "tiny")
# What file systems and MLflow take as a name.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class ConfigurationSpec(Settings):
    """One training recipe and one detector, for some seeds."""

    branch: BranchSpec = BranchSpec()
    detector: DetectorSpec = MahalanobisSpec()
    seeds: tuple[Annotated[int, Field(strict=True, ge=0, lt=2**31)], ...] = Field((0,), min_length=1)

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


def load_systems(names_or_paths: Sequence[str], backbone: str | None = None) -> list[SystemSpec]:
    """Several systems; see `load_system`. Two different ones of the same name are an error."""
    systems = {system.name: system for system in (load_system(name, backbone) for name in names_or_paths)}
    if len(systems) < len(set(names_or_paths)):
        raise InputError(f"two of {', '.join(names_or_paths)} have the same name; give each system its own")
    return list(systems.values())


def load_system(name_or_path: str, backbone: str | None = None) -> SystemSpec:
    """A built-in system by name, or a YAML file.

    Parameters
    ----------
    name_or_path: e.g. `s1`, or `my/system.yaml`
    backbone: checkpoint, URI or built-in name to use in place of every configuration's own

    Raises
    ------
    InputError
        Naming the file, the key and what is allowed there.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = SYSTEMS / f"{name_or_path}.yaml"
        if not path.exists() or path.parent != SYSTEMS:
            known = ", ".join(sorted(p.stem for p in SYSTEMS.glob("*.yaml")))
            raise InputError(f"unknown system {name_or_path!r}; give a YAML file or one of {known}")
    raw = _with_shared_settings(_read_yaml(path), path, backbone == "tiny")
    try:
        system = SystemSpec.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{path}: {describe(error, SystemSpec)}") from None
    if backbone is None:
        return system
    other = {"path": backbone, "sha256": None}
    return with_files(system, lambda file: file.model_copy(update=other) if isinstance(file, BackboneSpec) else file)


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, but a key that stands twice in a mapping is an error and not the last one's."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else id(key)
            if name in seen and name != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"{name} stands twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = _UniqueKeys(path.read_text()).get_single_data()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise InputError(
            f"{path}: a system file is a mapping with the keys name, description, subsystems, {', '.join(_SHARED)}"
        )
    return raw


def _with_shared_settings(raw: dict[str, Any], path: Path, tiny: bool) -> dict[str, Any]:
    """Copy the settings under `branch` into every configuration that does not say otherwise."""
    blocks = {block: raw.pop(block, None) or {} for block in _SHARED}
    for block, settings in blocks.items():
        try:
            BranchSpec.model_validate(settings)
        except ValidationError as error:
            if error.errors()[0]["loc"] or not isinstance(
                settings, dict
            ):  # else settings that do not go together: a configuration may replace one
                raise InputError(f"{path}: {block}.{describe(error, BranchSpec)}") from None
        _refuse_seed(settings, f"{path}: {block}")
    shared = {**blocks["branch"], **(blocks["tiny"] if tiny else {})}
    subsystems = raw.get("subsystems")
    for configurations in subsystems.values() if isinstance(subsystems, dict) else []:
        for name in configurations if isinstance(configurations, dict) else []:
            configuration = configurations[name] = configurations[name] or {}
            if isinstance(configuration, dict) and isinstance(configuration.get("branch", {}), dict):
                _refuse_seed(configuration.get("branch", {}), f"{path}: {name}.branch")
                configuration["branch"] = {**shared, **configuration.get("branch", {})}
    return raw


def _refuse_seed(settings: dict[str, Any], place: str) -> None:
    if "seed" in settings:
        raise InputError(f"{place}.seed: unknown key here; a configuration lists its `seeds`")


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


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """The first thing pydantic found, as one line: key, what is wrong, what is allowed."""
    first = error.errors(include_url=False)[0]
    key = ".".join(map(str, first["loc"])) or "the file"
    if first["type"] == "extra_forbidden":
        allowed = _allowed_keys(model, first["loc"])
        return f"{key}: unknown key" + (f"; allowed: {', '.join(allowed)}" if allowed else "")
    return f"{key}: {first['msg'].removeprefix('Value error, ')} (it is {first['input']!r})"


def _allowed_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Keys that may stand where the unknown one at `location` stands, found along the JSON schema."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    for step in location[:-1]:
        schema = _resolve(_descend(schema, str(step)), definitions)
    shared = _SHARED if model is SystemSpec and len(location) == 1 else ()
    return sorted([*schema.get("properties", {}), *shared])


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
