"""What people see in MLflow: sent from a ledger to a real store, without training."""

import json
import shutil
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from fusion.tasks import run_here
from orchestrator.fuse.result import fuse_into
from orchestrator.ledger.folders import (
    BRANCHES,
    FAILURES,
    GIVEN_UP,
    RESULT,
    SYSTEMS,
    Record,
    checksums,
    record_reason,
    write_record,
)
from orchestrator.tracking.presentation import detectors, shown
from orchestrator.tracking.store import sqlite_uri
from orchestrator.tracking.sync import Outbox
from orchestrator.tracking.tracker import open_tracker
from orchestrator.tracking.views import BRANCHES as BRANCHES_VIEW
from orchestrator.tracking.views import link
from tests.commands import tutti_here
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
    result, _ = fuse_into(folder, fusion_id, tables, tree, {}, about, run_here)
    identity = {"role": "fusion", "system": system, "fusion_id": fusion_id}
    method = {"method": result["delivered"]["method"]}
    write_record(folder, Record(name=system, identity=identity, tags=method, files=checksums(folder)))
    return result


class Store:
    """A ledger and the store that it is sent to."""

    def __init__(self, out, empty):
        self.out = out
        shutil.copy(empty, out / "mlflow.db")

    def send(self, status="FINISHED"):
        """As a run does, with a new process each time."""
        outbox = Outbox(open_tracker(None, self.out, EXPERIMENT), self.out)
        with outbox:
            pass
        assert outbox.close(status) == 0

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


def test_descriptions_and_pages_show_the_tables(store):
    runs = store.runs()
    note = runs["a/b/1"].data.tags["mlflow.note.content"]
    assert note.startswith("**Omega 61.23 % with knn-k2.5.**")
    assert "| fan | 70.00 | – | – | 61.23 |" in note
    note = runs["one"].data.tags["mlflow.note.content"]
    assert "Of 3 \\| with a bar." in note
    weights = {name: value for c in store.result["delivered"]["weights"].values() for name, value in c.items()}
    assert all(f"| sub/{name} | {value:.3f} |" in note for name, value in weights.items())
    assert (
        f"| two | 0 | {runs['two'].data.metrics['omega_in_sample']:.2f} |"
        in runs["out"].data.tags["mlflow.note.content"]
    )


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


def test_a_failed_branch_says_why_until_it_succeeds(tmp_path, empty):
    store = Store(tmp_path, empty)
    record = branch(tmp_path, "a/b/0")
    empty = record.model_copy(update={"metrics": {}, "curve": [], "files": {}})
    (tmp_path / BRANCHES).rename(tmp_path / "later")
    branch_id, reason = record.identity["branch_id"], "Traceback\nValueError: the loss is *not* finite"
    record_reason(tmp_path, FAILURES, branch_id, empty, reason)
    store.send("FAILED")
    run = store.runs()["a/b/0"]
    assert run.info.status == "FAILED"
    assert "**Failed:** ValueError: the loss is \\*not\\* finite" in run.data.tags["mlflow.note.content"]
    parent = next(run for run in store.runs().values() if run.data.tags["role"] == "run")
    assert "0 branches finished, 1 failed." in parent.data.tags["mlflow.note.content"]
    (tmp_path / FAILURES).rename(tmp_path / "unfinished")
    record_reason(tmp_path, GIVEN_UP, branch_id, empty, "given up at step 5")
    store.send()
    run = store.runs()["a/b/0"]
    assert run.info.status == "KILLED"
    assert "**Given up:** given up at step 5" in run.data.tags["mlflow.note.content"]
    parent = next(run for run in store.runs().values() if run.data.tags["role"] == "run")
    assert "0 branches finished, 0 failed, 1 given up." in parent.data.tags["mlflow.note.content"]
    (tmp_path / "later").rename(tmp_path / BRANCHES)
    (tmp_path / GIVEN_UP).rename(tmp_path / "unfinished" / "given_up")
    store.send()
    run = store.runs()["a/b/0"]
    assert (run.info.status, run.data.tags["failure"]) == ("FINISHED", "")
    assert "Failed" not in run.data.tags["mlflow.note.content"]


def test_the_first_detector_gives_a_branch_its_omega():
    metrics = {"knn-k2.omega": 1.0, "knn-k2.fan.hmean": 1.0, "knn.omega": 2.0, "gmm.omega": 3.0}
    files = dict.fromkeys(["tables/gmm.parquet", "tables/knn-k2.parquet", "tables/knn.parquet", "branch.pt"], "")
    record = Record(name="a/b/0", identity={"role": "branch"}, metrics=metrics, files=files)
    assert detectors(record) == ["knn-k2", "knn", "gmm"]
    assert shown(SimpleNamespace(), record).metrics == {
        "omega": 1.0,
        "hmean/fan": 1.0,
        "knn/omega": 2.0,
        "gmm/omega": 3.0,
    }


def test_an_evaluation_set_without_labels(tmp_path, store):
    folder = tmp_path / SYSTEMS / "one"
    folder.mkdir(parents=True)
    delivered = {**store.result["delivered"], "in_sample": None, "lomo": None, "ci": None}
    hidden = {**store.result, "delivered": delivered, "methods": {}, "machines": {"in_sample": None, "lomo": None}}
    hidden["omega"] = None
    (folder / RESULT).write_text(json.dumps(hidden))
    look = shown(folder, Record(name="one", identity={"role": "fusion", "system": "one"}))
    assert set(look.metrics) == {name for name in look.metrics if name.startswith("weights/")} != set()
    assert "No labels to measure it by" in look.note


def test_a_moved_run_keeps_its_artifacts(tmp_path):
    out = tmp_path / "out"
    branch(out, "a/b/0")
    fused(out, "one", ["g0", "p0"], "f1")
    with Outbox(open_tracker(None, out, EXPERIMENT), out) as outbox:
        pass
    assert not outbox.close("FINISHED")
    moved = out.rename(tmp_path / "elsewhere")
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
