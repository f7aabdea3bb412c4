"""What all settings have in common: those of branches, of detectors and of systems."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Metric = Literal["cosine", "euclidean"]
Density = Literal["none", "ratio", "difference"]
DensityWeight = Annotated[float, Field(ge=0)] | Literal["fitted"]
Shrinkage = Literal["ledoit_wolf", "oas"] | float


class Settings(BaseModel):
    """Base of all settings: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_value_for_a_number(cls, settings: Any) -> Any:
        """Pydantic would take `true` for 1."""
        for key, value in settings.items() if isinstance(settings, dict) else ():
            values = value if isinstance(value, (list, tuple)) else [value]
            field = cls.model_fields.get(key)
            if field and "bool" not in str(field.annotation) and any(isinstance(v, bool) for v in values):
                raise ValueError(f"{key} must not be a truth value")
        return settings


def by_name(value: Any) -> Any:
    """A choice that is given by its name alone, such as `knn`, as settings."""
    return {"name": value} if isinstance(value, str) else value
