"""MLflow: what people look at. The ledger decides what is finished; its records are sent here.

Only the driver writes, through `MlflowClient`, which names the run in each call.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# What cannot be sent waits in the ledger, so a client need not try for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag

from cluster.session import require_server
from orchestrator.ledger.folders import TABLES, Record, Status, folder_id, new_folder_id, read_record
from orchestrator.plan import digest
from orchestrator.tracking.presentation import FORM, Shown, shown
from orchestrator.tracking.store import ARTIFACTS, database_of, relocate, sqlite_uri
from orchestrator.tracking.views import experiment_tags
from scoring.errors import InputError
from scoring.table import file_sha256

# MLflow sets its own level when imported, and reports each step of making its database.
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("urllib3").setLevel(logging.ERROR)  # of a server that is away, the outbox tells
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # nor need the store print a traceback

_PARENT = "mlflow.parentRunId"
_NOTE = "mlflow.note.content"
_WEIGHTS = "weights/"  # metrics of a fusion, by configuration
# Tags: digest of the record that a run shows in full, and of its loss curve, whose points must not be logged twice.
_RECORD = "record"
_CURVE = "curve"
# Weights and embeddings stay in the ledger: MLflow would only hold a second copy of what nobody looks at there.
_LARGE = (".npy", ".pt")


@dataclass(frozen=True)
class Tracker:
    """One experiment on one MLflow store, and the tag that tells this output folder's runs from others'."""

    uri: str
    experiment: str
    experiment_id: str
    folder_id: str

    @property
    def client(self) -> MlflowClient:
        """A client of the store."""
        return MlflowClient(self.uri)

    def check(self) -> None:
        """Raise `InputError` at once if the store is a server that does not answer; a client would try for minutes."""
        if self.uri.startswith(("http://", "https://")):
            require_server(self.uri, "MLflow server", "check --tracking-uri")

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

    def open_parent(self, name: str) -> str:
        """The RUNNING run under which this output folder's runs stand, found or created; its id."""
        identity = self.parent_identity
        run = self._find(identity) or self._create(name, identity)
        self.client.update_run(run.info.run_id, status="RUNNING")
        return str(run.info.run_id)

    def open_system(self, name: str, parent_id: str) -> str:
        """The run of a system of this folder, under which its branches stand, found or created; its id."""
        identity = {"role": "fusion", "system": name, "folder": self.folder_id}
        run = self._find(identity) or self._create(name, {**identity, _PARENT: parent_id})
        return str(run.info.run_id)

    def below(self, run_id: str) -> set[str]:
        """Ids of the runs under a run and under its children: a system's or a folder's branches among them."""
        systems = self._children(run_id)
        return {*systems, *(branch for system in systems for branch in self._children(system))}

    def _children(self, run_id: str) -> list[str]:
        query = f"tags.`{_PARENT}` = '{run_id}'"
        runs = self.client.search_runs([self.experiment_id], query, max_results=50_000)
        return [str(run.info.run_id) for run in runs]

    @property
    def parent_identity(self) -> dict[str, str]:
        """Tags by which the output folder's own run is found."""
        return {"role": "run", "folder": self.folder_id}

    def sent(self) -> set[str]:
        """Marks of the records that the store has in full; see `mark`."""
        runs = self.client.search_runs([self.experiment_id], max_results=50_000)
        return {run.data.tags[_RECORD] for run in runs if _RECORD in run.data.tags}

    def send(self, folder: Path, record: Record, parents: Sequence[str] = ()) -> None:
        """Make a record's run say what the record says; files that the run has already are not sent again.

        parents: ids of the runs under one of which it stands; where it stands already it stays, else it is the first
        """
        client, look = self.client, shown(folder, record)
        identity = self._identity(record)
        run = self._find(identity)
        if run is None:
            run = self._create(look.name, identity, record.metrics.get("seconds", 0.0))
        run_id, run_tags = run.info.run_id, run.data.tags
        files = {path: sha256 for path, sha256 in record.files.items() if not path.endswith(_LARGE)}
        for path, sha256 in files.items():
            if run_tags.get(checksum_tag(path)) != sha256:
                client.log_artifact(run_id, str(folder / path), path.rpartition("/")[0] or None)
        tags = {"failure": ""} if "failure" in run_tags else {}  # of an earlier try
        tags |= {**record.identity, **record.tags, **look.tags, _NOTE: look.note}
        tags |= {checksum_tag(path): sha256 for path, sha256 in files.items()}
        if parents:
            tags[_PARENT] = run_tags[_PARENT] if run_tags.get(_PARENT) in parents else parents[0]
        tags |= {_CURVE: digest(record.curve)}
        client.log_batch(
            run_id,
            _figures(look, run, [] if run_tags.get(_CURVE) == tags[_CURVE] else record.curve),
            [Param(key, value[:6000]) for key, value in look.params.items()],
            [RunTag(key, value) for key, value in tags.items()],
        )
        client.update_run(run_id, name=look.name)
        client.set_terminated(run_id, record.status)
        client.set_tag(run_id, _RECORD, mark(record))  # last: it says that the run has everything

    def send_views(self, branches: Sequence[Shown]) -> None:
        """Offer views of the experiment in MLflow's UI, with the columns that matter for these branches."""
        experiment = self.client.get_experiment(self.experiment_id)
        for key, value in experiment_tags(experiment.creation_time, branches).items():
            if experiment.tags.get(key) != value:
                self.client.set_experiment_tag(self.experiment_id, key, value)

    def close_strays(self, status: Status) -> None:
        """Close runs of systems that were not fused, and those that a server made and could not answer for."""
        query = f"attributes.status = 'RUNNING' and tags.folder = '{self.folder_id}'"
        for run in self.client.search_runs([self.experiment_id], query):
            self.client.set_terminated(run.info.run_id, "KILLED" if status == "FINISHED" else status)

    def _identity(self, record: Record) -> dict[str, str]:
        """Tags by which a record's run is found: a system that is fused again keeps its run, and its branches."""
        if record.identity["role"] != "fusion":
            return record.identity
        return {"role": "fusion", "system": record.identity["system"], "folder": self.folder_id}

    def _create(self, name: str, identity: Mapping[str, str], seconds: float = 0.0) -> Run:
        """A run that began so many seconds ago."""
        began, tags = int((time.time() - seconds) * 1000), {**identity, "folder": self.folder_id}
        return self.client.create_run(self.experiment_id, began, tags, run_name=name)

    def _find(self, identity: Mapping[str, str]) -> Run | None:
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in identity.items())
        runs = self.client.search_runs([self.experiment_id], query, max_results=1)
        return runs[0] if runs else None


def mark(record: Record) -> str:
    """Stands for a record and the form in which it is shown."""
    return f"{FORM}-{record.digest}"


def _figures(look: Shown, run: Run, curve: Sequence[tuple[int, float]]) -> list[Metric]:
    """What to log; a configuration that an earlier fusion weighed and this one does not know weighs nothing now."""
    now = int(time.time() * 1000)
    gone = {name: 0.0 for name in run.data.metrics if name.startswith(_WEIGHTS)}
    metrics = [Metric(key, value, now, 0) for key, value in {**gone, **look.metrics}.items()]
    return metrics + [Metric("loss", loss, now, step) for step, loss in curve]


def checksum_tag(artifact: str) -> str:
    """Name of the tag that holds an artifact's SHA-256."""
    return f"sha256.{artifact}"


def experiment_name(data: Path, fingerprint: str, out: Path) -> str:
    """One experiment per data set and run folder; a folder's own stays what it is when clips are added."""
    record = read_record(out)
    if record is not None and "experiment" in record.tags:
        return record.tags["experiment"]
    return f"{out.resolve().name} on {data.resolve().name} {fingerprint[:8]}"


def open_tracker(uri: str | None, out: Path, experiment: str) -> Tracker:
    """Connect to the store, by default a database in `out`, and find or create the experiment.

    The database is brought up to date here, by one process: workers that did so at once would collide.

    Raises
    ------
    InputError
        If the store cannot be reached.
    """
    new_folder_id(out)
    tracker = find_tracker(uri, out, experiment)
    if tracker is not None:
        return tracker
    location = (out.resolve() / ARTIFACTS).as_uri() if uri is None else None
    store = _store(uri, out)
    with reaching(store):
        created = MlflowClient(store).create_experiment(experiment, artifact_location=location)
    return Tracker(store, experiment, created, folder_id(out))


def find_tracker(uri: str | None, out: Path, experiment: str) -> Tracker | None:
    """The experiment in the store, or None; see `open_tracker`."""
    store = _store(uri, out)
    with reaching(store):
        if uri is None:
            relocate(out)
        stored = MlflowClient(store).get_experiment_by_name(experiment)
    if stored is None:
        return None
    if stored.lifecycle_stage != "active":
        raise InputError(f"experiment {experiment} was deleted in {store}; restore it there, or give another --out")
    return Tracker(store, experiment, stored.experiment_id, folder_id(out))


def _store(uri: str | None, out: Path) -> str:
    """The store's URI, absolute, since workers have another working directory; a server must answer at once."""
    if uri is None:
        return sqlite_uri(out / "mlflow.db")
    if urlsplit(uri).password:  # it would be in logs and in the list of processes
        raise InputError(
            "--tracking-uri has a password in it; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
        )
    if uri.startswith(("http://", "https://")):
        require_server(uri, "MLflow server", "check --tracking-uri")
    elif uri.startswith("sqlite:///"):
        return sqlite_uri(database_of(uri), urlsplit(uri).query)
    return uri


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
