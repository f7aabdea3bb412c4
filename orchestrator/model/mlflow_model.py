"""The MLflow model of a packaged ensemble; this file is its code, which MLflow runs when it loads the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from branches.audio import decode
from orchestrator.model.ensemble import Ensemble
from scoring.errors import InputError


class EnsembleModel(PythonModel):  # type: ignore[misc]  # MLflow publishes no types
    """Recordings of machines → scores and decisions; paths are not taken, so that a server opens no file."""

    def load_context(self, context: Any) -> None:
        """Open the package."""
        self._ensemble = Ensemble(Path(context.artifacts["ensemble"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Score each row: `machine`, `audio` (the bytes of a WAV or FLAC file) and `section`, 0 if absent.

        Returns
        -------
        frame: score, calibrated, threshold, anomaly, and as JSON what each branch contributes to the score

        Raises
        ------
        MlflowException
            Naming the row whose audio cannot be used or whose machine is not known; a server answers it with 400.
        """
        sections = model_input["section"].fillna(0) if "section" in model_input else [0] * len(model_input)
        rows = zip(model_input["machine"], model_input["audio"], sections, strict=True)
        return pd.DataFrame([self._row(i, *row) for i, row in enumerate(rows)])

    def _row(self, number: int, machine: str, audio: bytes, section: int) -> dict[str, object]:
        try:
            scores = self._ensemble.score(machine, [decode(audio, "audio")], int(section))
        except InputError as error:
            raise MlflowException.invalid_parameter_value(f"row {number}: {error}") from None
        names = [member.name for member in self._ensemble.manifest.members]
        return {
            "score": scores.score[0],
            "calibrated": scores.calibrated[0],
            "threshold": scores.threshold,
            "anomaly": bool(scores.anomaly[0]),
            "contributions": json.dumps(dict(zip(names, scores.contributions[:, 0].tolist(), strict=True))),
        }


set_model(EnsembleModel())
