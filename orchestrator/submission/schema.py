"""What must stand in a meta file (the form of DCASE 2025 and 2026 Task 2) and in the authors' file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field

from orchestrator.submission.files import PLACEHOLDER, PLACEHOLDER_LABEL
from scoring.errors import InputError
from scoring.settings import Settings

_UNFILLED = re.compile(rf"{PLACEHOLDER}|{PLACEHOLDER_LABEL}.*|TODO|TBD|FIXME|x{{3,}}|\?+", re.IGNORECASE)

Text = Annotated[str, Field(min_length=1)]
Entries = Annotated[dict[str, Any], Field(min_length=1)]


class Author(BaseModel):
    firstname: Text
    lastname: Text
    email: Text
    affiliation: Any  # or several in a list


class Submission(BaseModel):
    label: Text
    name: Text
    abbreviation: Text = Field(max_length=10)
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


class AuthorsFile(Settings):
    """What only a person can say about a submission; `systems` gives names other than those of the run."""

    label: str = PLACEHOLDER_LABEL
    abstract: Text
    source_code: str | None = None
    authors: list[dict[str, Any]] = Field(min_length=1)
    systems: dict[str, dict[Literal["name", "abbreviation"], Text]] = Field({})


def read_yaml(content: bytes, name: object) -> Any:
    """What a YAML file holds, which may be anyone's; raises InputError, naming `name`, if it is not YAML."""
    try:
        raw = yaml.safe_load(content)
        list(unfilled(raw))  # an alias of itself has no end
    except RecursionError:
        raise InputError(f"{name}: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(" ".join(f"{name}: not YAML: {error}".split())) from None
    return raw


def unfilled(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Keys that hold a placeholder, and the placeholder."""
    if isinstance(value, (dict, list)):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from unfilled(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, str) and _UNFILLED.fullmatch(value.strip()):
        yield key, value
