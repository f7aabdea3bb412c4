"""MLflow: what people look at. The ledger decides what is finished, and is shown here.

Only the driver writes, through `MlflowClient`, which names the run in each call.
"""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# What cannot be sent waits in the ledger, so a client need not try for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag

from cluster.session import first_line, require_server
from orchestrator.ledger.folders import TABLES, Status, folder_id, is_intact, new_folder_id, read_record
from orchestrator.tracking.descriptions import Shown
from orchestrator.tracking.store import (
    ARTIFACTS,
    SERVER,
    StoreRefuses,
    check_database,
    database_of,
    relocate,
    store_uri,
)
from orchestrator.tracking.views import experiment_tags
from scoring.errors import InputError

# MLflow sets its own level when imported, and reports each step of making its database.
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("urllib3").setLevel(logging.ERROR)  # of a server that is away, the outbox tells
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # nor need the store print a traceback

_PARENT = "mlflow.parentRunId"
_NOTE = "mlflow.note.content"
_MARK = "record"  # tag: stands for the record or result that a run shows in full
_CHECK = "check --tracking-uri or MLFLOW_TRACKING_URI"
_WEIGHTS = "weights/"  # metrics of a system, by configuration
_IDENTITY = {"branch": "branch_id", "fusion": "system"}  # the tag that tells a folder's runs of a role apart
_IN_DOUBT = ""


@dataclass(frozen=True)
class Tracker:
    """One experiment on one MLflow store, and the tag that tells this run folder's runs from others'.

    Who sends asks for the runs once, by `sent`: nobody else makes any with this folder's tag meanwhile.
    """

    uri: str
    experiment: str
    experiment_id: str
    folder_id: str
    _ids: dict[tuple[str, str], str] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def client(self) -> MlflowClient:
        """A client of the store."""
        return MlflowClient(self.uri)

    def check(self) -> None:
        """Raise `InputError` if the store does not answer or cannot be written to; a client would try for minutes."""
        _check(self.uri, writing=True)

    def tables(self, run: Run, folder: Path) -> list[Path]:
        """Copies in `folder` of all score tables of a branch's run.

        Raises InputError if one of them is lost or damaged, or the store does not answer.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with reaching(self.uri):
            self.client.download_artifacts(run.info.run_id, "", str(folder))
        record = read_record(folder)
        files = [file for file in record.files if file.startswith(f"{TABLES}/")] if record else []
        if record is None or not all(is_intact(folder, record, file) for file in files):
            raise InputError(f"{run.info.run_name}: a score table is lost or damaged in {self.uri}; run it again")
        return [folder / file for file in files]

    def below(self, run_id: str) -> set[str]:
        """Ids of the runs under a run and under its children: a system's or a folder's branches among them."""
        children = self._children(run_id)
        return {*children, *(branch for child in children for branch in self._children(child))}

    def _children(self, run_id: str) -> list[str]:
        return [run.info.run_id for run in self._search(f"tags.`{_PARENT}` = '{run_id}'")]

    def sent(self) -> set[str]:
        """Marks of what the store shows in full of this folder; see `descriptions.mark_of`."""
        runs = self._search(f"tags.folder = '{self.folder_id}'")
        self._ids.clear()
        self._ids.update((_key(run.data.tags), run.info.run_id) for run in reversed(runs))  # of two the newest
        return {run.data.tags[_MARK] for run in runs if _MARK in run.data.tags}

    def open_run(self, name: str) -> str:
        """The RUNNING run under which this folder's runs stand, found or created; its id."""
        run_id = self._open(name, {"role": "run"})
        self.client.update_run(run_id, status="RUNNING")
        return run_id

    def open_system(self, name: str, parent_id: str) -> str:
        """The run of a system of this folder, under which its branches stand, found or created; its id."""
        return self._open(name, {"role": "fusion", "system": name}, parent_id)

    def send(self, look: Shown, mark: str, parents: Sequence[str] = ()) -> None:
        """Make a run show this.

        A system that is fused again keeps its run, and its branches.

        mark: of the record or result that is shown
        parents: ids of the runs under one of which it stands; where it stands already it stays, else it is the first
        """
        client, now = self.client, _now()
        run = self._run(look.name, look.identity, seconds=look.metrics.get("cost/seconds", 0.0))
        run_id, before = run.info.run_id, run.data
        for file in look.files:
            client.log_artifact(run_id, str(look.folder / file), file.rpartition("/")[0] or None)
        if run.info.run_name != look.name:
            client.update_run(run_id, name=look.name)
        # Now, since a store loads a run's metrics and parameters for it.
        client.set_terminated(run_id, look.status)
        tags = {"failure": ""} if "failure" in before.tags else {}  # of an earlier try
        tags |= {**look.tags, _NOTE: look.note}
        if parents:
            tags[_PARENT] = before.tags[_PARENT] if before.tags.get(_PARENT) in parents else parents[0]
        # A configuration that an earlier fusion weighed and this one does not know weighs nothing now.
        figures = {**{name: 0.0 for name in before.metrics if name.startswith(_WEIGHTS)}, **look.metrics}
        # A point of the loss that has the same time at every try is there once.
        losses = [Metric("loss", loss, run.info.start_time, step) for step, loss in look.curve]
        client.log_batch(
            run_id,
            [*(Metric(name, value, now, 0) for name, value in figures.items()), *losses],
            [Param(key, value[:6000]) for key, value in look.params.items()],
        )
        tags[_MARK] = mark  # last: it says that the run has everything
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        self._ids[_key(look.identity)] = run_id

    def send_views(self, parts: Sequence[Shown]) -> None:
        """Offer views of the experiment in MLflow's UI, with the columns that matter for these branches and systems."""
        experiment = self.client.get_experiment(self.experiment_id)
        for key, value in experiment_tags(experiment.creation_time, parts).items():
            if experiment.tags.get(key) != value:
                self.client.set_experiment_tag(self.experiment_id, key, value)

    def close_strays(self, status: Status) -> None:
        """Close runs of systems that were not fused, and those that a server made and could not answer for."""
        for run in self._search(f"tags.folder = '{self.folder_id}' and attributes.status = 'RUNNING'"):
            self.client.set_terminated(run.info.run_id, "KILLED" if status == "FINISHED" else status)

    def _open(self, name: str, identity: Mapping[str, str], parent_id: str = "") -> str:
        key = _key(identity)
        if not self._ids.get(key):
            self._ids[key] = self._run(name, identity, parent_id).info.run_id
        return self._ids[key]

    def _run(self, name: str, identity: Mapping[str, str], parent_id: str = "", seconds: float = 0.0) -> Run:
        """The run of this folder with these tags, found or, as one that began so many seconds ago, created."""
        key, tags = _key(identity), {**identity, "folder": self.folder_id}
        run_id = self._ids.get(key)
        self._ids[key] = _IN_DOUBT  # until all is sent: a server may make a run and not answer, a user may delete one
        if run_id == _IN_DOUBT:
            if runs := self._search(" and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())):
                return runs[0]
        elif run_id is not None:
            return self.client.get_run(run_id)
        if parent_id:
            tags[_PARENT] = parent_id
        return self.client.create_run(self.experiment_id, _now() - int(1000 * seconds), tags, name)

    def _search(self, query: str) -> list[Run]:
        return list(self.client.search_runs([self.experiment_id], query, max_results=50_000))


def _key(tags: Mapping[str, str]) -> tuple[str, str]:
    """What tells a folder's runs apart, of a run's tags or the identity among them."""
    role = tags.get("role", "")
    return role, tags.get(_IDENTITY.get(role, ""), "")


def _now() -> int:
    """Milliseconds since 1970, as MLflow has times."""
    return int(1000 * time.time())


def open_tracker(uri: str | None, out: Path, experiment: str) -> Tracker:
    """Connect to the store, by default a database in `out`, and find or create the experiment.

    The database is brought up to date here, by one process: workers that did so at once would collide.

    Raises InputError if the store cannot be reached.
    """
    store = store_uri(uri, out)
    _check(store, writing=True)
    new_folder_id(out, shared=uri is not None)
    if uri is None:
        with reaching(store):
            relocate(out / "mlflow.db", out)
    tracker = find_tracker(uri, out, experiment)
    if tracker is not None:
        return tracker
    location = (out.resolve() / ARTIFACTS).as_uri() if uri is None else None
    with reaching(store):
        created = MlflowClient(store).create_experiment(experiment, artifact_location=location)
    return Tracker(store, experiment, created, folder_id(out))


def find_tracker(uri: str | None, out: Path, experiment: str) -> Tracker | None:
    """The experiment in the store, or None; a store that is there stays as it is. See `open_tracker`."""
    store = store_uri(uri, out)
    _check(store, writing=False)
    with reaching(store):
        stored = MlflowClient(store).get_experiment_by_name(experiment)
    if stored is None:
        return None
    if stored.lifecycle_stage != "active":
        raise InputError(f"experiment {experiment} was deleted in {store}; restore it there, or give another --out")
    return Tracker(store, experiment, stored.experiment_id, folder_id(out))


def _check(uri: str, writing: bool) -> None:
    """Raise `InputError` if nothing answers there, or a database cannot be read or written to."""
    if uri.startswith(SERVER):
        require_server(uri, "MLflow server", _CHECK)
    elif uri.startswith("sqlite"):
        with reaching(uri):
            check_database(database_of(uri), writing)


@contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turn whatever a store's client raises into an `InputError` that names the store."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason, database = first_line(error).partition(". ")[0], database_of(uri)
        if "database schema" in reason:
            remedy = f"run `mlflow db upgrade {shlex.quote(uri)}` if an older MLflow made it, "
        elif not uri.startswith("sqlite") or not database.exists():
            raise InputError(f"no MLflow store at {uri} ({reason}); {_CHECK}") from error
        else:
            remedies = {
                "locked": "end the process that uses it, ",
                "readonly": "make it writable, ",
                "unable": "make its folder writable, ",
            }
            remedy = next((remedies[word] for word in remedies if word in reason), "")
        remedy += f"{'or ' * bool(remedy)}move it away, and the next run makes another"
        raise StoreRefuses(f"the MLflow store {uri} cannot be used ({reason}); {remedy}") from error
