"""What people see in MLflow: sent from a ledger to a real store, without training."""

import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from mlflow import MlflowClient

from fusion.tasks import run_here
from orchestrator.fuse.result import fuse_into
from orchestrator.ledger.folders import BRANCHES, FAILURES, SYSTEMS, Record, record_failure, write_record
from orchestrator.tracking.outbox import Outbox
from orchestrator.tracking.store import sqlite_uri
from orchestrator.tracking.tracker import find_tracker, open_tracker
from orchestrator.tracking.views import BRANCHES as BRANCHES_VIEW
from orchestrator.tracking.views import link
from scoring.errors import InputError
from tests.commands import checksums, tutti_here
from tests.fusion.pools import make_pool

EXPERIMENT = "out on data"
PARAMS = {"objective.name": "arcface", "channel": "near", "seed": "0", "augmentation.noise": "null"}


def branch(out, name, system="one", omega=61.23456, seed=0):
    """A finished branch with one table, which MLflow does not read."""
    folder = out / BRANCHES / name.replace("/", "-")
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    (folder / "tables" / "knn-k2.5.parquet").write_bytes(b"a table")
    figures = {"omega": omega, "fan.hmean": omega, "fan.auc_source": 70.0, "my.pump.hmean": omega}
    record = Record(
        name=name,
        identity={"role": "branch", "branch_id": folder.name},
        tags={"system": system},
        params={**PARAMS, "seed": str(seed)},
        metrics={"seconds": 90.0, "cpus": 2.0, **{f"knn-k2.5.{key}": value for key, value in figures.items()}},
        curve=[(1, 3.0), (2, 2.0)],
        files=checksums(folder),
        tables={"knn-k2.5": "its identity"},
    )
    write_record(folder, record)
    return record


def fused(out, system, names, fusion_id):
    """A system that fuses made tables."""
    folder = out / SYSTEMS / system
    pool = make_pool(("fan", "pump"), 6)
    tables = {name: pool[name] for name in names}
    tree = {"sub": {name: [name] for name in names}}
    about = {"system": system, "description": f"Of {len(names)} | with a bar.", "branches": [], "missing": []}
    return fuse_into(folder, fusion_id, tables, tree, {}, about, run_here)


class Store:
    """A ledger and the store that it is sent to."""

    def __init__(self, out, empty):
        self.out = out
        shutil.copy(empty, out / "mlflow.db")

    def send(self, status="FINISHED"):
        """As a run does, with a new process each time."""
        assert Outbox(open_tracker(None, self.out, EXPERIMENT), self.out).close(status) == 0

    @property
    def client(self):
        return MlflowClient(f"sqlite:///{self.out / 'mlflow.db'}")

    @property
    def experiment(self):
        return self.client.get_experiment_by_name(EXPERIMENT)

    def runs(self):
        found = self.client.search_runs([self.experiment.experiment_id])
        by_name = {run.info.run_name: run for run in found}
        assert len(by_name) == len(found)
        return by_name

    def parent(self, run):
        return self.client.get_run(run.data.tags["mlflow.parentRunId"]).info.run_name


@pytest.fixture(scope="module")
def pool_names():
    return sorted(make_pool(("fan", "pump"), 6))[:3]


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A new database; making one takes seconds."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory, pool_names, empty):
    out = tmp_path_factory.mktemp("ledger") / "out"
    out.mkdir()
    store = Store(out, empty)
    branch(out, "a/b/0", omega=60.0)
    branch(out, "a/b/1", "one,two", seed=1)
    store.result = fused(out, "one", pool_names, "first")
    fused(out, "two", pool_names[:2], "second")
    store.send()
    return store


def test_branches_stand_under_systems_and_systems_under_the_folder(store):
    runs = store.runs()
    assert set(runs) == {"out", "one", "two", "a/b/0", "a/b/1"}
    assert {name: store.parent(run) for name, run in runs.items() if name != "out"} == {
        "a/b/0": "one",
        "a/b/1": "one",  # which two share
        "one": "out",
        "two": "out",
    }
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    tags = runs["a/b/1"].data.tags
    assert (tags["configuration"], tags["detector"], tags["system"]) == ("a/b", "knn-k2.5", "one,two")
    assert "failure" not in tags


def test_every_run_has_an_omega_and_only_honest_ones(store):
    runs, delivered = store.runs(), store.result["delivered"]
    omegas = {name: run.data.metrics["omega"] for name, run in runs.items()}
    assert omegas["a/b/1"] == 61.235
    assert omegas["one"] == pytest.approx(delivered["lomo"], abs=1e-3)
    assert omegas["out"] == max(omegas["one"], omegas["two"])
    metrics = runs["one"].data.metrics
    assert metrics["omega_in_sample"] == pytest.approx(delivered["in_sample"], abs=1e-3)
    assert metrics["hmean/fan"] == pytest.approx(store.result["machines"]["lomo"]["fan"]["hmean"], abs=1e-3)
    assert metrics["methods/uniform"] == pytest.approx(store.result["methods"]["uniform"]["lomo"], abs=1e-3)


def test_names_with_dots_are_told_apart(store):
    metrics = store.runs()["a/b/1"].data.metrics
    assert metrics["hmean/my.pump"] == 61.235
    assert metrics["auc_source/fan"] == 70.0
    assert metrics["cost/seconds"] == 90.0
    run = store.runs()["a/b/1"]
    assert run.info.end_time - run.info.start_time >= 90_000
    assert "augmentation.noise" not in run.data.params  # absent, as in the settings


def test_every_run_has_a_line_of_text(store):
    notes = {name: run.data.tags["mlflow.note.content"] for name, run in store.runs().items()}
    assert notes["a/b/1"] == "Omega 61.23 % with knn-k2.5"
    assert notes["one"].startswith(f"Omega {store.result['omega']:.2f} % on held-out machines: ")
    assert notes["one"].endswith(" Of 3 \\| with a bar.")
    assert notes["out"] == "2 branches finished, 0 failed"


def test_artifacts_are_the_tables_and_what_they_are_checked_by(store):
    run = store.runs()["a/b/1"]
    assert {file.path for file in store.client.list_artifacts(run.info.run_id)} == {"tables", "record.json"}
    assert not [tag for tag in run.data.tags if tag.startswith("sha256")]
    system = store.runs()["one"]
    kept = {file.path for file in store.client.list_artifacts(system.info.run_id)}
    assert kept == {"fused.parquet", "held_out.parquet", "result.json"}


def test_tables_are_read_from_the_store_unless_they_are_damaged(store, tmp_path):
    tracker, run = find_tracker(sqlite_uri(store.out / "mlflow.db"), tmp_path, EXPERIMENT), store.runs()["a/b/1"]
    (table,) = tracker.tables(run, tmp_path / "copies")
    assert (table.name, table.read_bytes()) == ("knn-k2.5.parquet", b"a table")
    stored = Path(run.info.artifact_uri.removeprefix("file://")) / "tables" / table.name
    for damage in (lambda: stored.write_bytes(b"another"), stored.unlink):
        damage()
        with pytest.raises(InputError, match="a/b/1: a score table is lost or damaged"):
            tracker.tables(run, tmp_path / f"after {damage}")
    stored.write_bytes(b"a table")


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("tags.role = 'branch' and metrics.omega > 61", {"a/b/1"}),
        ('tags.role = "branch" and metrics.`hmean/fan` < 61', {"a/b/0"}),
        ("tags.system LIKE '%two%' and tags.role = 'branch'", {"a/b/1"}),
        ("tags.configuration = 'a/b' and params.seed = '0'", {"a/b/0"}),
        ("params.`objective.name` = 'arcface'", {"a/b/0", "a/b/1"}),
        ("tags.role = 'fusion' and metrics.omega > 0", {"one", "two"}),
        ("attributes.status = 'FAILED'", set()),
    ],
)
def test_the_queries_of_the_docs(store, query, found):
    runs = store.client.search_runs([store.experiment.experiment_id], query)
    assert {run.info.run_name for run in runs} == found


def test_views_have_the_columns_that_matter(store):
    tag = store.experiment.tags[f"mlflow.sharedViewState.{BRANCHES_VIEW}"]
    state = json.loads(json.loads(tag)["state"])
    columns = state["selectedColumns"]
    assert columns[:3] == ["metrics.`omega`", "metrics.`hmean/fan`", "metrics.`hmean/my.pump`"]
    assert "params.`seed`" in columns
    assert "params.`channel`" not in columns  # the same for all
    assert (state["searchFilter"], state["orderByKey"]) == ("tags.role = 'branch'", "metrics.`omega`")
    (chart,) = state["compareRunCharts"]
    assert chart["selectedMetrics"] == ["hmean/my.pump", "hmean/fan", "omega"]  # lines have the colour of the last
    assert link("http://host:1/", "7", "v").startswith("http://host:1/#/experiments/7/runs?")


def test_sending_again_changes_nothing(store):
    def written():
        with sqlite3.connect(store.out / "mlflow.db") as database:
            return [sorted(database.execute(f"SELECT * FROM {table}")) for table in ("tags", "params", "metrics")]

    before = written()
    store.send()
    assert [len(table) for table in written()[:2]] == [len(table) for table in before[:2]]
    assert sorted(set(before[2]) - set(written()[2])) == []
    # A store that knows an older form of the records gets all of them again, into the same runs.
    ids = {name: run.info.run_id for name, run in store.runs().items()}
    for run_id in ids.values():
        store.client.set_tag(run_id, "record", "of old")
    store.send()
    assert {name: run.info.run_id for name, run in store.runs().items()} == ids
    losses = store.client.get_metric_history(ids["a/b/0"], "loss")
    assert [loss.step for loss in losses] == [1, 2]


def test_a_system_that_is_fused_again_keeps_its_run_and_its_branches(tmp_path, pool_names, empty):
    store = Store(tmp_path, empty)
    branch(tmp_path, "a/b/0")
    store.send("FAILED")  # nothing is fused yet
    assert store.runs()["one"].info.status == "FAILED"
    fused(tmp_path, "one", pool_names[:2], "first")
    store.send()
    before = store.runs()["one"]
    assert before.info.status == "FINISHED"
    fused(tmp_path, "one", pool_names[1:], "second")
    branch(tmp_path, "a/b/0", "another,one")
    store.send()
    runs = store.runs()
    assert runs["one"].info.run_id == before.info.run_id
    assert runs["one"].data.tags["fusion_id"] == "second"
    assert runs["one"].data.metrics[f"weights/sub/{pool_names[0]}"] == 0.0
    assert store.parent(runs["a/b/0"]) == "one"  # though another comes first in the alphabet
    assert runs["a/b/0"].data.tags["system"] == "another,one"


def test_a_failed_branch_says_why_until_it_succeeds(tmp_path, empty):
    store = Store(tmp_path, empty)
    record = branch(tmp_path, "a/b/0")
    failed = record.model_copy(update={"metrics": {}, "curve": [], "files": {}, "tables": {}})
    (tmp_path / BRANCHES).rename(tmp_path / "later")
    reason = "Traceback\nValueError: the loss is *not* finite"
    record_failure(tmp_path, record.identity["branch_id"], failed, reason)
    store.send("FAILED")
    run = store.runs()["a/b/0"]
    assert run.info.status == "FAILED"
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("Failed: ValueError: the loss is \\*not\\* finite (reason.txt")
    assert [file.path for file in store.client.list_artifacts(run.info.run_id)] == ["reason.txt", "record.json"]
    parent = next(run for run in store.runs().values() if run.data.tags["role"] == "run")
    assert parent.data.tags["mlflow.note.content"] == "0 branches finished, 1 failed"
    (tmp_path / "later").rename(tmp_path / BRANCHES)
    shutil.rmtree(tmp_path / FAILURES)
    store.send()
    run = store.runs()["a/b/0"]
    assert (run.info.status, run.data.tags["failure"]) == ("FINISHED", "")
    assert "Failed" not in run.data.tags["mlflow.note.content"]


def test_a_branch_of_no_system_stands_under_the_folder(tmp_path, empty):
    store = Store(tmp_path, empty)
    branch(tmp_path, "log-mel baseline", "")
    store.send()
    assert store.parent(store.runs()["log-mel baseline"]) == tmp_path.name


def test_two_folders_of_one_name_share_an_experiment_and_no_run(tmp_path, pool_names):
    uri = f"sqlite:///{tmp_path / 'shared.db'}"
    MlflowClient(uri).create_experiment(EXPERIMENT, artifact_location=str(tmp_path / "artifacts"))
    for person, omega in (("anna", 60.0), ("bernd", 70.0)):
        out = tmp_path / person / "out"
        branch(out, "a/b/0", omega=omega)
        fused(out, "one", pool_names[:2], "the same")
        assert Outbox(open_tracker(uri, out, EXPERIMENT), out).close("FINISHED") == 0
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert len(runs) == 6
    by_id = {run.info.run_id: run for run in runs}
    for run in runs:
        if parent := run.data.tags.get("mlflow.parentRunId"):
            assert by_id[parent].data.tags["folder"] == run.data.tags["folder"]
    assert {run.data.metrics["omega"] for run in runs if run.data.tags["role"] == "branch"} == {60.0, 70.0}


def test_a_relative_folder_is_found_when_the_working_directory_changes(tmp_path, empty, monkeypatch):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    store = Store(out, empty)
    monkeypatch.chdir(tmp_path)
    outbox = Outbox(open_tracker(None, Path("out"), EXPERIMENT), Path("out"))
    os.chdir(elsewhere)  # as while Ray starts
    branch(out, "a/b/0")
    assert outbox.close("FINISHED") == 0
    assert set(store.runs()) == {"out", "one", "a/b/0"}


def test_a_moved_run_keeps_its_artifacts(tmp_path):
    out = tmp_path / "out"
    branch(out, "a/b/0")
    fused(out, "one", ["g0", "p0"], "f1")
    assert not Outbox(open_tracker(None, out, EXPERIMENT), out).close("FINISHED")
    moved = out.rename(tmp_path / "elsewhere")
    before = (moved / "mlflow.db").read_bytes()
    find_tracker(None, moved, EXPERIMENT)
    assert (moved / "mlflow.db").read_bytes() == before  # looked at, and left as it is
    open_tracker(None, moved, EXPERIMENT)
    client = MlflowClient(sqlite_uri(moved / "mlflow.db"))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment.artifact_location == (moved / "mlartifacts").as_uri()
    (run,) = client.search_runs([experiment.experiment_id], "tags.role = 'branch'")
    assert client.list_artifacts(run.info.run_id, "tables")[0].path == "tables/knn-k2.5.parquet"
    assert Path(client.download_artifacts(run.info.run_id, "tables/knn-k2.5.parquet")).read_bytes() == b"a table"


def test_the_ui_refuses_what_it_cannot_serve(tmp_path):
    refused = tutti_here("ui", "--out", tmp_path)
    assert refused.exit_code == 2
    assert "a run with --tracking-uri is shown by that server" in refused.stderr
