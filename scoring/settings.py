"""What all settings have in common: those of branches, of detectors and of systems."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of all settings: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def by_name(value: Any) -> Any:
    """A choice that is given by its name alone, such as `knn`, as settings."""
    return {"name": value} if isinstance(value, str) else value
