"""MLflow: the record of what is finished, and what people look at.

Everything is written through `MlflowClient`, which names the run in each call, so that many worker processes
can write at once. A branch is finished when its run is FINISHED and its tables have the checksums it names.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag

from cluster.session import require_server
from scoring.errors import InputError
from scoring.table import file_sha256, read_table

# MLflow sets its own level when imported, and reports each step of making its database.
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)

TABLES = "tables"
_PARENT = "mlflow.parentRunId"


@dataclass(frozen=True)
class Tracker:
    """One experiment on one MLflow store, and the run under which this driver's runs stand.

    driver: digest of host and output folder, so that nobody closes the runs of another driver on the same store
    """

    uri: str
    experiment_id: str
    driver: str
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
            paths = {name: self.intact(run, f"{TABLES}/{name}.parquet", folder) for name in detectors}
            return None if None in paths.values() else {name: read_table(path) for name, path in paths.items() if path}

    def add_systems(self, branch_id: str, systems: Sequence[str]) -> None:
        """Note on a branch's run that these systems use it too."""
        run = self._find({"role": "branch", "branch_id": branch_id})
        if run is not None and (joined := joined_systems(run, systems)) != run.data.tags.get("system"):
            self.client.set_tag(run.info.run_id, "system", joined)

    def intact(self, run: Run, artifact: str, folder: str) -> Path | None:
        """An artifact's copy in `folder`, or None if it is absent or not what its run's checksum says.

        Raises
        ------
        InputError
            If the store does not answer: what is finished must not be taken for missing.
        """
        expected = run.data.tags.get(checksum_tag(artifact))
        with reaching(self.uri):
            parent = artifact.rpartition("/")[0] or None
            present = [file.path for file in self.client.list_artifacts(run.info.run_id, parent)]
            if expected is None or artifact not in present:
                return None
            path = Path(self.client.download_artifacts(run.info.run_id, artifact, folder))
        return path if file_sha256(path) == expected else None

    def tables(self, run: Run, folder: Path) -> list[Path]:
        """Copies in `folder` of all score tables that a branch's run names.

        Raises
        ------
        InputError
            If one of them is lost or damaged.
        """
        folder.mkdir(parents=True, exist_ok=True)
        start, paths = checksum_tag(f"{TABLES}/"), []
        for tag in sorted(run.data.tags):
            if tag.startswith(start):
                artifact = tag.removeprefix(checksum_tag(""))
                path = self.intact(run, artifact, str(folder))
                if path is None:
                    raise InputError(f"{run.info.run_name}: {artifact} is lost or damaged in {self.uri}; run it again")
                paths.append(path)
        return paths

    @contextmanager
    def run(self, name: str, tags: Mapping[str, str], params: Mapping[str, str]) -> Iterator[TrackedRun]:
        """The run with these tags, found or created, RUNNING inside the block and closed after it."""
        found = self._find(tags)
        parent = {_PARENT: self.parent_id} if self.parent_id else {}
        if found is None:
            found = self.client.create_run(self.experiment_id, tags={**tags, **parent}, run_name=name)
        run = TrackedRun(self, found)
        self.client.update_run(run.run_id, status="RUNNING")
        status = "KILLED"
        try:
            run.log(params=params, tags={**parent, "driver": self.driver, "failure": ""})
            yield run
            status = "FINISHED"
        except Exception as error:
            status = "FAILED"
            run.log(tags={"failure": f"{type(error).__name__}: {error}"[:500]})
            raise
        finally:
            self.client.set_terminated(run.run_id, status)

    def finished_run(self, tags: Mapping[str, str]) -> Run | None:
        """The finished run with these tags, if there is one."""
        run = self._find(tags)
        return run if run is not None and run.info.status == "FINISHED" else None

    def close_unfinished(self) -> None:
        """Close what a killed driver of this output folder, or a worker of it, has left open."""
        query = f"attributes.status = 'RUNNING' and tags.driver = '{self.driver}'"
        for run in self.client.search_runs([self.experiment_id], query, max_results=50_000):
            if run.info.run_id != self.parent_id:
                self.client.set_terminated(run.info.run_id, "KILLED")

    def _find(self, tags: Mapping[str, str]) -> Run | None:
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        runs = self.client.search_runs([self.experiment_id], query, max_results=1)
        return runs[0] if runs else None


@dataclass(frozen=True)
class TrackedRun:
    """One open run; `before` is what was in the store when it was opened."""

    tracker: Tracker
    before: Run

    @property
    def run_id(self) -> str:
        """The run's id in the store."""
        return str(self.before.info.run_id)

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


def joined_systems(run: Run, systems: Sequence[str]) -> str:
    """The `system` tag of a branch that the systems noted on its run use, and `systems` too."""
    return ",".join(sorted({*run.data.tags.get("system", "").split(","), *systems} - {""}))


def checksum_tag(artifact: str) -> str:
    """Name of the tag that holds an artifact's SHA-256."""
    return f"sha256.{artifact}"


def experiment_name(data: Path, fingerprint: str, out: Path) -> str:
    """One experiment per data set and run folder."""
    return f"{out.resolve().name} on {data.resolve().name} {fingerprint[:8]}"


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
    store = _store(uri, out)
    with reaching(store):
        created = MlflowClient(store).create_experiment(experiment, artifact_location=location)
    return Tracker(store, created, _driver(out))


def find_tracker(uri: str | None, out: Path, experiment: str) -> Tracker | None:
    """The experiment in the store, or None; see `open_tracker`."""
    store = _store(uri, out)
    with reaching(store):
        found = MlflowClient(store).get_experiment_by_name(experiment)
    if found is None:
        return None
    if found.lifecycle_stage != "active":
        raise InputError(f"experiment {experiment} was deleted in {store}; restore it there, or give another --out")
    return Tracker(store, found.experiment_id, _driver(out))


def _store(uri: str | None, out: Path) -> str:
    """The store's URI, absolute, since workers have another working directory; a server must answer at once."""
    if uri is None:
        return f"sqlite:///{out.resolve() / 'mlflow.db'}"
    if uri.startswith(("http://", "https://")):
        require_server(uri, "MLflow server", "check --tracking-uri")
    elif uri.startswith("sqlite:///"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).resolve()}"
    return uri


def _driver(out: Path) -> str:
    # A digest, since a quote in a path would end the string in MLflow's queries.
    return hashlib.sha256(f"{socket.gethostname()}:{out.resolve()}".encode()).hexdigest()[:16]


@contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turn whatever a store's client raises into an `InputError` that names the store."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
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
