"""Finished work in a run's folder, made without training, and the MLflow store that it is sent to."""

import shutil

from mlflow import MlflowClient

from fusion.tasks import run_here
from orchestrator.fuse.result import fuse_into
from orchestrator.ledger.folders import BRANCHES, SYSTEMS, TABLES, Record, write_record
from orchestrator.tracking.outbox import Outbox
from orchestrator.tracking.store import sqlite_uri
from scoring.table import file_sha256, write_table
from tests.fusion.pools import make_pool

EXPERIMENT = "out on data"


def finished_branch(out, name="a/b/0", scores=b"scores", table="knn", **known):
    folder = out / BRANCHES / name.replace("/", "-")
    path = folder / TABLES / f"{table}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.write_bytes if isinstance(scores, bytes) else lambda scores: write_table(scores, path))(scores)
    known |= {"tables": {table: "its identity"}, "files": {f"{TABLES}/{path.name}": file_sha256(path)}}
    record = Record(name=name, identity={"role": "branch", "branch_id": folder.name}, **known)
    write_record(folder, record)
    return record


def empty_store(shared, database):
    once = shared("mlflow", lambda folder: MlflowClient(sqlite_uri(folder / "mlflow.db")).search_experiments())
    database.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(once / "mlflow.db", database)  # as making one takes MLflow seconds
    return sqlite_uri(database)


class Ledger:
    def __init__(self, out, shared, uri=None):
        self.out, self.uri, self.store = out, uri, uri or empty_store(shared, out / "mlflow.db")
        self.client = MlflowClient(self.store)
        out.mkdir(parents=True, exist_ok=True)

    def fused(self, system, names, fusion_id="any", **about):
        about = {"system": system, "description": f"Of {len(names)} | with a bar.", "branches": [], **about}
        made = make_pool(("fan", "pump"), 6), {"sub": {name: [name] for name in names}}
        return fuse_into(self.out / SYSTEMS / system, fusion_id, *made, {}, about, run_here)

    @property
    def outbox(self):
        return Outbox(self.uri, self.out, EXPERIMENT)

    @property
    def experiment(self):
        return self.client.get_experiment_by_name(EXPERIMENT)

    @property
    def runs(self):
        found = self.client.search_runs([self.experiment.experiment_id])
        assert len({run.info.run_name for run in found}) == len(found)
        return {run.info.run_name: run for run in found}

    def artifacts(self, name, folder=None):
        return {file.path for file in self.client.list_artifacts(self.runs[name].info.run_id, folder)}
