"""What must stand in a meta file (the form of DCASE 2025 and 2026 Task 2) and in the authors' file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator

from orchestrator.submission.files import PLACEHOLDER, PLACEHOLDER_LABEL, TEAM_LABEL

_UNFILLED = re.compile(rf"{PLACEHOLDER}|{PLACEHOLDER_LABEL}.*|TODO|TBD|FIXME|x{{3,}}|\?+", re.IGNORECASE)

Text = Annotated[str, Field(min_length=1)]
Abbreviation = Annotated[str, Field(min_length=1, max_length=10)]
Entries = Annotated[dict[str, Any], Field(min_length=1)]


class Author(BaseModel):
    """One author."""

    firstname: Text
    lastname: Text
    email: Annotated[str, Field(pattern=".@.")]
    affiliation: Any  # or several in a list


class Submission(BaseModel):
    """Who submits what."""

    label: Text
    name: Text
    abbreviation: Abbreviation
    authors: list[Author] = Field(min_length=1)


class System(BaseModel):
    """How the system works, and the size of all that runs to score a clip."""

    description: Entries
    complexity: Entries


class Results(BaseModel):
    """What the system reaches on the development set: machine → cell → per cent."""

    development_dataset: Entries


class Meta(BaseModel):
    """A whole meta file. The form changes a little every year, so further keys are allowed."""

    submission: Submission
    system: System
    results: Results


class SystemNames(BaseModel, extra="forbid"):
    """What a system is called in the challenge's tables."""

    name: Text | None = None
    abbreviation: Abbreviation | None = None


class AuthorsFile(BaseModel, extra="forbid"):
    """What only a person can say about a submission."""

    label: str = PLACEHOLDER_LABEL
    abstract: Text
    source_code: str | None = None
    authors: list[dict[str, Any]] = Field(min_length=1)
    systems: dict[str, SystemNames] = {}

    @field_validator("label")
    @classmethod
    def _is_label(cls, label: str) -> str:
        if not TEAM_LABEL.fullmatch(label):
            raise ValueError(f"not a label such as {PLACEHOLDER_LABEL}, with letters, digits and hyphens in each part")
        return label


def read_mapping(content: bytes) -> dict[str, Any]:
    """The mapping in a YAML file, which may be anyone's.

    Raises
    ------
    ValueError
        If there is none.
    """
    try:
        raw = yaml.safe_load(content.decode())
        list(unfilled(raw))  # an alias of itself has no end
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {error}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(raw, dict):
        raise ValueError("not a mapping of keys to values")
    return raw


def unfilled(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Keys that hold a placeholder, and what to say of each."""
    if isinstance(value, (dict, list)):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from unfilled(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, str) and _UNFILLED.fullmatch(value.strip()):
        yield key, f"still to be filled in (it is {value!r})"


def faults(model: type[BaseModel], raw: dict[str, Any]) -> dict[str, str]:
    """What is wrong with each key that is wrong."""
    try:
        model.model_validate(raw)
    except ValidationError as error:
        return {
            ".".join(map(str, fault["loc"])): "missing"
            if fault["type"] == "missing"
            else f"{fault['msg'].removeprefix('Value error, ')} (it is {str(fault['input'])[:60]!r})"
            for fault in error.errors(include_url=False)
        }
    return {}
