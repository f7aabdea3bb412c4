"""The MLflow model of a packaged ensemble; this file is its code, which MLflow runs when it loads the model."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel

from branches.audio import decode
from orchestrator.model.ensemble import Ensemble
from scoring.errors import InputError


class Refused(MlflowException):  # type: ignore[misc]  # MLflow publishes no types
    """A request that cannot be scored; MLflow's server would put all of its recordings before the message."""

    def __init__(self, message: str) -> None:
        self._message = message
        super().__init__(message, error_code=INVALID_PARAMETER_VALUE)

    @property
    def message(self) -> str:
        """The reason alone."""
        return self._message

    @message.setter
    def message(self, text: str) -> None:
        """Ignores what the server would make of it."""


class EnsembleModel(PythonModel):  # type: ignore[misc]  # MLflow publishes no types
    """Recordings of machines → scores and decisions; paths are not taken, so that a server opens no file."""

    def load_context(self, context: Any) -> None:
        """Open the package."""
        self._ensemble = Ensemble(Path(context.artifacts["ensemble"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Score each row: `machine`, `audio` (a recording's file as bytes or base64), `section` (0 if absent or null).

        `machine` may be absent where the model has one.

        Returns
        -------
        frame: score, calibrated, threshold, anomaly, as JSON what each branch contributes to the score, and a warning
            where the recording is unlike the machine's clips, else an empty one

        Raises
        ------
        Refused
            Naming the row that cannot be scored, and why; a server answers it with 400.
        """
        rows = model_input.reindex(columns=["machine", "audio", "section"]).itertuples(index=False)
        return pd.DataFrame([self._row(i, *row) for i, row in enumerate(rows)])

    def _row(self, number: int, machine: Any, audio: Any, section: Any) -> dict[str, object]:
        try:
            machine = self._machine(machine)
            samples = decode(_content(audio), "audio")
            scores = self._ensemble.score(machine, [samples], _whole(section))
        except InputError as error:
            raise Refused(f"row {number}: {error}") from None
        names = [member.name for member in self._ensemble.manifest.members]
        differences = self._ensemble.differences(machine, samples)
        return {
            "score": scores.score[0],
            "calibrated": scores.calibrated[0],
            "threshold": scores.threshold,
            "anomaly": bool(scores.anomaly[0]),
            "contributions": json.dumps(dict(zip(names, scores.contributions[:, 0].tolist(), strict=True))),
            "warning": f"unlike the clips of {machine}: {differences}" if differences else "",
        }

    def _machine(self, name: Any) -> str:
        name = self._ensemble.only_machine if _is_absent(name) else name
        if not isinstance(name, str):
            raise InputError(f"no machine; the model has {', '.join(self._ensemble.machines)}")
        return name


def _is_absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _content(audio: Any) -> bytes:
    """The bytes of a recording's file; the request forms other than `dataframe_…` bring base64 as it is."""
    if isinstance(audio, str):
        audio = audio.encode()
    if not isinstance(audio, bytes):
        raise InputError("no audio; give the file of a recording, as base64")
    if wrapped := re.fullmatch(rb"\{'b64': '(.*)'\}", audio):  # TensorFlow Serving's form, as text
        audio = wrapped[1]
    try:
        return base64.b64decode(audio, validate=True)  # a file holds bytes that base64 lacks
    except binascii.Error:
        return audio


def _whole(section: Any) -> int:
    """A section's number; 0 if absent."""
    if _is_absent(section):
        return 0
    try:
        if int(section) == float(section):
            return int(section)
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(f"section {section!r:.40}: not a whole number")


set_model(EnsembleModel())
