"""What must stand in a meta file (the form of DCASE 2025 and 2026 Task 2) and in the authors' file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

from orchestrator.submission.files import PLACEHOLDER, PLACEHOLDER_LABEL, SYSTEM_LABEL, TEAM_LABEL


def _address(text: str) -> str:
    if "@" not in text and text != PLACEHOLDER:
        raise ValueError("not an e-mail address")
    return text


def _team(label: str) -> str:
    if not TEAM_LABEL.fullmatch(label):
        raise ValueError(f"not a label such as {PLACEHOLDER_LABEL}, with letters, digits and hyphens in each part")
    return label


def _system(label: str) -> str:
    if not SYSTEM_LABEL.fullmatch(label):
        raise ValueError(f"not a system's label such as {PLACEHOLDER_LABEL}_1, numbered from 1 to 4")
    return label


def _positive(count: int | float | str | None) -> int | float | str | None:
    if isinstance(count, (int, float)) and not count > 0:
        raise ValueError("must be greater than 0")
    return count


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, dict) else value


Text = Annotated[str, Field(min_length=1)]
Abbreviation = Annotated[str, Field(min_length=1, max_length=10)]


class _Open(BaseModel):
    """The form changes a little every year, so further keys are allowed."""

    model_config = ConfigDict(extra="allow")


class Affiliation(_Open):
    """Where an author works."""

    institute: Text = Field(validation_alias=AliasChoices("institute", "institution"))


class Author(_Open):
    """One author; exactly one of them is corresponding."""

    firstname: Text
    lastname: Text
    email: Annotated[str, AfterValidator(_address)]
    corresponding: bool | None = None
    affiliation: Annotated[list[Affiliation], Field(min_length=1), BeforeValidator(_listed)]


class Submission(_Open):
    """Who submits what."""

    label: Annotated[str, AfterValidator(_system)]
    name: Text
    abbreviation: Abbreviation
    authors: list[Author] = Field(min_length=1)


class Complexity(_Open):
    """Size of all that runs to score a clip."""

    total_parameters: Annotated[int | float | str | None, AfterValidator(_positive)]


class System(_Open):
    """How the system works."""

    description: dict[str, Any] = Field(min_length=1)
    complexity: Complexity


class Results(_Open):
    """What the system reaches on the development set."""

    development_dataset: dict[str, Any] = Field(min_length=1)


class Meta(_Open):
    """A whole meta file."""

    submission: Submission
    system: System
    results: Results


class SystemNames(BaseModel):
    """What a system is called in the challenge's tables."""

    model_config = ConfigDict(extra="forbid")

    name: Text | None = None
    abbreviation: Abbreviation | None = None


class AuthorsFile(BaseModel):
    """What only a person can say about a submission."""

    model_config = ConfigDict(extra="forbid")

    label: Annotated[str, AfterValidator(_team)] = PLACEHOLDER_LABEL
    abstract: Text
    source_code: str | None = None
    authors: list[dict[str, Any]] = Field(min_length=1)
    systems: dict[str, SystemNames] = {}
