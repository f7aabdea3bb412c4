"""What all settings have in common: those of branches, of detectors and of systems."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

Metric = Literal["cosine", "euclidean"]
Density = Literal["none", "ratio", "difference"]
DensityWeight = Annotated[float, Field(ge=0)] | Literal["fitted"]
Shrinkage = Literal["ledoit_wolf"] | float


class Settings(BaseModel):
    """Base of all settings: unknown keys are errors, values do not change, and nothing at all is the defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _names_what_is_allowed(cls, settings: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Beside pydantic's other errors, so that all are told at once."""
        try:
            return handler({} if settings is None else settings)
        except ValidationError as error:
            raise ValidationError.from_exception_data(
                cls.__name__,
                [
                    InitErrorDetails(
                        type=PydanticCustomError(mistake["type"], cls._message(mistake)),
                        loc=mistake["loc"],
                        input=mistake["input"],
                    )
                    for mistake in error.errors()
                ],
            ) from None

    @classmethod
    def _message(cls, mistake: ErrorDetails) -> str:
        allowed = sorted(cls.model_fields)
        match mistake["type"], mistake["loc"]:
            case "extra_forbidden", (key,):
                near = difflib.get_close_matches(str(key), allowed, 1)
                return f"unknown key{'; did you mean ' + near[0] + '?' if near else ''}; allowed: {', '.join(allowed)}"
            case "model_type", ():
                return f"Input should be a mapping with keys among {', '.join(allowed)}"
        return mistake["msg"]


def by_name(value: Any) -> Any:
    """A choice that is given by its name alone, such as `knn`, as settings."""
    return {"name": value} if isinstance(value, str) else value
