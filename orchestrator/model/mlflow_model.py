"""The MLflow model of a packaged ensemble; this file is its code, which MLflow runs when it loads the model."""

from __future__ import annotations

import base64
import binascii
import json
import re
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel
from pydantic import AfterValidator, BaseModel, ValidationError

from branches.audio import decode
from orchestrator.model.ensemble import Ensemble
from scoring.errors import InputError


class Refused(MlflowException):  # type: ignore[misc]  # MLflow publishes no types
    """A request that cannot be scored; its message stays, before which MLflow's server would put all recordings."""

    def __setattr__(self, name: str, value: object) -> None:
        if name != "message" or not hasattr(self, "message"):
            super().__setattr__(name, value)


def _content(audio: bytes) -> bytes:
    """The bytes of a recording's file; the request forms other than `dataframe_…` bring base64 as it is."""
    if wrapped := re.fullmatch(rb"\{'b64': '(.*)'\}", audio):  # TensorFlow Serving's form, as text
        audio = wrapped[1]
    try:
        return base64.b64decode(audio, validate=True)  # a file holds bytes that base64 lacks
    except binascii.Error:
        return audio


class Row(BaseModel):
    """A recording to be scored; `audio` is its file as bytes or as base64, the machine may be that of the model."""

    machine: str | None = None
    audio: Annotated[bytes, AfterValidator(_content)]
    section: int = 0


class EnsembleModel(PythonModel):  # type: ignore[misc]  # MLflow publishes no types
    """Recordings of machines → scores and decisions; paths are not taken, so that a server opens no file."""

    def load_context(self, context: Any) -> None:
        """Open the package and read all of it, so that the first request waits for nothing."""
        self._ensemble = Ensemble(Path(context.artifacts["ensemble"]))
        self._ensemble.warm_up()

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Score each row, see `Row`; one that cannot be scored raises `Refused`, which a server answers with 400.

        Returns
        -------
        frame: as of `Ensemble.score`, contributions as JSON by score table; and a warning where the recording
            is unlike the machine's clips, else an empty one
        """
        return pd.DataFrame([self._scored(i, row) for i, row in enumerate(model_input.to_dict("records"))])

    def _scored(self, number: int, values: dict[str, Any]) -> dict[str, Any]:
        try:
            # What is null, or NaN where other rows have a value, is absent.
            row = Row.model_validate({k: v for k, v in values.items() if v is not None and v == v})
            machine = row.machine or self._ensemble.only_machine
            if machine is None:
                raise InputError(f"no machine; the model has {', '.join(self._ensemble.machines)}")
            samples = decode(row.audio, "audio")
            (scored,) = self._ensemble.score(machine, [samples], row.section).to_pylist()
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            raise Refused(f"row {number}: {first['loc'][0]}: {first['msg']}", INVALID_PARAMETER_VALUE) from None
        except InputError as error:
            raise Refused(f"row {number}: {error}", INVALID_PARAMETER_VALUE) from None
        contributions = json.dumps({part["branch"]: part["contribution"] for part in scored["contributions"]})
        warning = self._ensemble.warning(machine, samples, row.section)
        return {**scored, "contributions": contributions, "warning": warning}


set_model(EnsembleModel())
