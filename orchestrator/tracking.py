"""MLflow: the record of what is finished, and what people look at.

Everything is written through `MlflowClient`, which names the run in each call, so that many worker processes
can write at once. A branch is finished when its run is FINISHED and its tables have the checksums it names.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunStatus, RunTag
from mlflow.exceptions import MlflowException

from scoring.errors import InputError
from scoring.table import file_sha256, read_table

# MLflow sets its own level when imported, and reports each step of making its database.
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)

TABLES = "tables"
_PARENT = "mlflow.parentRunId"
_UNFINISHED = {RunStatus.to_string(s) for s in (RunStatus.RUNNING, RunStatus.SCHEDULED)}


@dataclass(frozen=True)
class Tracker:
    """One experiment on one MLflow store, and the run under which this driver's runs stand."""

    uri: str
    experiment_id: str
    parent_id: str | None = None

    @property
    def client(self) -> MlflowClient:
        """A client of the store."""
        return MlflowClient(self.uri)

    def finished(self, branch_id: str, detectors: Sequence[str]) -> dict[str, pa.Table] | None:
        """The branch's score tables by detector, or None if any is missing or damaged."""
        run = self._find({"role": "branch", "branch_id": branch_id})
        if run is None or run.info.status != "FINISHED":
            return None
        with tempfile.TemporaryDirectory() as folder:
            try:
                return {name: self._table(run, name, folder) for name in detectors}
            except (InputError, MlflowException, OSError):
                return None

    def _table(self, run: Run, name: str, folder: str) -> pa.Table:
        path = self.client.download_artifacts(run.info.run_id, f"{TABLES}/{name}.parquet", folder)
        if file_sha256(path) != run.data.tags.get(f"sha256.{name}"):
            raise InputError(f"{path}: the checksum is another than its run names")
        return read_table(path)

    @contextmanager
    def run(self, name: str, tags: Mapping[str, str], params: Mapping[str, str]) -> Iterator[TrackedRun]:
        """The run with these tags, found or created, RUNNING inside the block and closed after it."""
        found = self._find(tags)
        parent = {_PARENT: self.parent_id} if self.parent_id else {}
        if found is None:
            found = self.client.create_run(self.experiment_id, tags={**tags, **parent}, run_name=name)
        run = TrackedRun(self, found.info.run_id)
        self.client.update_run(run.run_id, status="RUNNING")
        try:
            run.log(params=params, tags=parent)
            yield run
        except BaseException as error:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            run.log(tags={"failure": f"{type(error).__name__}: {error}"[:500]})
            self.client.set_terminated(run.run_id, status)
            raise
        self.client.set_terminated(run.run_id, "FINISHED")

    def finished_run(self, tags: Mapping[str, str]) -> Run | None:
        """The finished run with these tags, if there is one."""
        run = self._find(tags)
        return run if run is not None and run.info.status == "FINISHED" else None

    def close_unfinished(self) -> None:
        """Close what a killed driver or worker has left open in this experiment."""
        for run in self.client.search_runs([self.experiment_id], max_results=50_000):
            if run.info.status in _UNFINISHED and run.info.run_id != self.parent_id:
                self.client.set_terminated(run.info.run_id, "KILLED")

    def _find(self, tags: Mapping[str, str]) -> Run | None:
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        runs = self.client.search_runs([self.experiment_id], query, max_results=1)
        return runs[0] if runs else None


@dataclass(frozen=True)
class TrackedRun:
    """One open run."""

    tracker: Tracker
    run_id: str

    def log(
        self,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        curve: Sequence[tuple[int, float]] = (),
    ) -> None:
        """Write metrics, parameters, tags and the loss at some steps in one request."""
        now = int(time.time() * 1000)
        values = [Metric(key, value, now, 0) for key, value in (metrics or {}).items()]
        values += [Metric("loss", loss, now, step) for step, loss in curve]
        self.tracker.client.log_batch(
            self.run_id,
            values,
            [Param(key, value[:6000]) for key, value in (params or {}).items()],
            [RunTag(key, value) for key, value in (tags or {}).items()],
        )

    def upload(self, path: Path) -> None:
        """Copy a file, or a folder's files, into the run's artifacts."""
        if path.is_dir():
            self.tracker.client.log_artifacts(self.run_id, str(path))
        else:
            self.tracker.client.log_artifact(self.run_id, str(path))


def experiment_name(data: Path, fingerprint: str, out: Path) -> str:
    """One experiment per data set and run folder."""
    return f"{data.resolve().name}-{fingerprint[:8]}/{out.resolve().name}"


def open_tracker(uri: str | None, out: Path, experiment: str) -> Tracker:
    """Connect to the store, by default a database in `out`, and find or create the experiment.

    The database is brought up to date here, by one process: workers that did so at once would collide.

    Raises
    ------
    InputError
        If the store cannot be reached.
    """
    found = find_tracker(uri, out, experiment)
    if found is not None:
        return found
    location = (out.resolve() / "mlartifacts").as_uri() if uri is None else None
    uri = uri or _local_store(out)
    with _reaching(uri):
        return Tracker(uri, MlflowClient(uri).create_experiment(experiment, artifact_location=location))


def find_tracker(uri: str | None, out: Path, experiment: str) -> Tracker | None:
    """The experiment in the store, or None; see `open_tracker`."""
    uri = uri or _local_store(out)
    with _reaching(uri):
        found = MlflowClient(uri).get_experiment_by_name(experiment)
    return Tracker(uri, found.experiment_id) if found is not None else None


def _local_store(out: Path) -> str:
    return f"sqlite:///{out.resolve() / 'mlflow.db'}"


@contextmanager
def _reaching(uri: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever the store's client raises, the remedy is the same
        reason = str(error).splitlines()[0]
        raise InputError(f"no MLflow store at {uri} ({reason}); check --tracking-uri") from error


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow parameters: {"objective": {"name": …}} → {"objective.name": …}."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return flat
