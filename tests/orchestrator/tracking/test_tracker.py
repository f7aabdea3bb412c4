"""What people see in MLflow: sent from a ledger to a real store, without training, in views as its UI saves them."""

import json
import os
import re
import shutil
import socket
import sqlite3
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import mlflow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.utils.validation import _validate_metric_name

from orchestrator.ledger.folders import BRANCHES, RECORD, RESULT, SYSTEMS, Record, record_failure, write_record
from orchestrator.tracking import views
from orchestrator.tracking.descriptions import Shown, marks, shown
from orchestrator.tracking.outbox import Outbox, experiment_name
from orchestrator.tracking.store import database_of, refuse_password, sqlite_uri
from orchestrator.tracking.tracker import Tracker, find_tracker, open_tracker
from orchestrator.tracking.ui import serve, where_shown
from scoring.errors import InputError
from tests.commands import free_port
from tests.orchestrator.ledgers import EXPERIMENT, Ledger, empty_store, finished_branch

pytestmark = pytest.mark.slow

PARAMS = {"objective.name": "arcface", "channel": "near", "augmentation.noise": "null", "path": "p" * 6001}


def branch(ledger, name="a/b/0", system="one", omega=61.23456):
    figures = {"omega": omega, "fan.hmean": omega, "fan.auc_source": 70.0, "my.pump.hmean": omega}
    known = {"metrics": {"seconds": 90.0, **{f"knn-k2.5.{key}": value for key, value in figures.items()}}}
    known |= {"tags": {"system": system}, "params": {**PARAMS, "seed": name[-1]}, "curve": [(1, 3.0), (2, 2.0)]}
    return finished_branch(ledger.out, name, b"a table", "knn-k2.5", **known)


@pytest.fixture
def ledger(tmp_path, shared):
    return Ledger(tmp_path / "out", shared)


@pytest.fixture(scope="module")
def sent(tmp_path_factory, shared):
    ledger = Ledger(tmp_path_factory.mktemp("sent") / "out", shared)
    for name, system, omega in (("a/b/0", "one", 60.0), ("a/b/1", "one,two", 61.23456), ("log-mel", "", 61.5)):
        branch(ledger, name, system, omega)
    ledger.result = ledger.fused("one", ["g0", "g1", "o0"], missing=["a/c/0"])
    ledger.fused("two", ["g0", "p0"])
    (ledger.out / "generated" / "g").mkdir(parents=True)
    for file in ("report.html", "generated/g/check.json", "generated/g/features.npy"):
        (ledger.out / file).touch()
    assert ledger.outbox.close("FINISHED") == 0
    return ledger


def test_a_store_shows_the_run_its_systems_and_their_branches(sent):
    runs, one = sent.runs, sent.result
    ids, tags = {run.info.run_id: name for name, run in runs.items()}, {n: run.data.tags for n, run in runs.items()}
    parents = {name: ids.get(tags[name].get("mlflow.parentRunId")) for name in runs}
    assert parents == {"out": None, "one": "out", "two": "out", "a/b/0": "one", "a/b/1": "one", "log-mel": "out"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert {"configuration": "a/b", "system": "one,two"}.items() <= tags["a/b/1"].items()
    assert runs["a/b/1"].data.params.keys() == {"objective.name", "channel", "seed", "path"}  # what is off is left out
    assert sent.artifacts("a/b/1") == {"tables", "record.json"}
    assert sent.artifacts("one") == {"fused.parquet", "held_out.parquet", "result.json"}
    assert sent.artifacts("out") == {"report.html", "generated"}
    assert sent.artifacts("out", "generated/g") == {"generated/g/check.json"}
    figures = {name: run.data.metrics for name, run in runs.items()}
    hmeans = {"omega": 61.235, "hmean/fan": 61.235, "hmean/my.pump": 61.235}
    assert figures["a/b/1"] == {**hmeans, "auc_source/fan": 70.0, "cost/seconds": 90.0, "loss": 2.0}
    expected = {"omega": one["delivered"]["lomo"], "omega_in_sample": one["delivered"]["in_sample"]}
    expected |= {"hmean/fan": one["machines"]["lomo"]["fan"]["hmean"]}
    assert {name: figures["one"][name] for name in expected} == pytest.approx(expected, abs=1e-3)
    assert figures["out"]["omega"] == max(figures[name]["omega"] for name in ("one", "two")) > figures["two"]["omega"]
    assert 90_000 <= runs["a/b/1"].info.end_time - runs["a/b/1"].info.start_time < 200_000
    notes = {name: tags[name]["mlflow.note.content"] for name in runs}
    assert notes["a/b/1"] == "Omega 61.23 %"
    assert notes["one"].startswith(f"Omega {one['omega']:.2f} % on held-out machines, ")
    assert notes["one"].endswith(" Fused without a/c/0. Of 3 \\| with a bar.")
    assert "Fused without" not in notes["two"]
    assert notes["out"].startswith("3 branches finished, 0 failed; report.html among the artifacts")


def test_the_queries_of_the_docs_find_runs_whose_tables_are_read_unless_they_are_damaged(sent, tmp_path):
    _, _, searching = (Path(__file__).parents[3] / "docs" / "mlflow.md").read_text().partition("## Searching")
    queries = re.findall(r"^\| `+(.+?)`+ \|", searching, re.MULTILINE)
    branches = [{"a/b/1", "log-mel"}, {"a/b/0"}, {"a/b/1"}, {"a/b/0"}, {"a/b/0", "a/b/1", "log-mel"}]
    for query, names in zip(queries, [*branches, {"one", "two"}, set()], strict=True):
        runs = sent.client.search_runs([sent.experiment.experiment_id], query)
        assert {run.info.run_name for run in runs} == names
    tracker, run = find_tracker(sent.store, tmp_path, EXPERIMENT), sent.runs["a/b/1"]
    (table,) = tracker.tables(run, tmp_path / "copies")
    assert (table.name, table.read_bytes()) == ("knn-k2.5.parquet", b"a table")
    stored = Path(run.info.artifact_uri.removeprefix("file://")) / "tables" / table.name
    for damage in (lambda: stored.write_bytes(b"another"), stored.unlink):
        damage()
        with pytest.raises(InputError, match="a/b/1: a score table is lost or damaged"):
            tracker.tables(run, tmp_path / f"after {damage}")
    stored.write_bytes(b"a table")


def test_sending_again_changes_nothing(sent):
    def states():
        return {name: (run.info.run_id, name == "out" or run.info.end_time) for name, run in sent.runs.items()}

    before, again = states(), sent.outbox
    assert [again.send(), again.close("FINISHED"), again._tracker] == [0, 0, None]  # MLflow was not asked
    again.begin()
    assert [again.send(), sent.runs["out"].info.status, again.close("FINISHED")] == [0, "RUNNING", 0]
    assert (states(), sent.outbox._tracker) == (before, None)  # ended when they were sent
    os.utime(sent.out / "mlflow.db")  # as if it were another
    assert sent.outbox._tracker is not None
    ids = {name: run_id for name, (run_id, _) in before.items()}
    for run_id in ids.values():
        sent.client.set_tag(run_id, "record", "of old")
    assert sent.outbox.close("FINISHED") == 0
    assert {name: run_id for name, (run_id, _) in states().items()} == ids
    assert [loss.step for loss in sent.client.get_metric_history(ids["a/b/0"], "loss")] == [1, 2]


def test_a_system_that_is_fused_again_keeps_its_run_and_its_branches(ledger):
    branch(ledger)
    for status, seen in (("FAILED", "FAILED"), ("FINISHED", "KILLED")):  # nothing is fused
        ledger.outbox.close(status)
        assert ledger.runs["one"].info.status == seen
        ledger.client.update_run(ledger.runs["one"].info.run_id, status="RUNNING")
    for system, names in (("one", ["g0", "g1"]), ("another,one", ["g1", "o0"])):
        branch(ledger, system=system)
        ledger.fused("one", names, fusion_id=system)
        ledger.outbox.close("FINISHED")
    one, shared = ledger.runs["one"], ledger.runs["a/b/0"].data.tags
    assert (one.info.status, one.data.tags["fusion_id"]) == ("FINISHED", "another,one")
    assert one.data.metrics["weights/sub/g0"] == 0.0 < one.data.metrics["weights/sub/g1"]
    assert (shared["mlflow.parentRunId"], shared["system"]) == (one.info.run_id, "another,one")


def test_a_failed_branch_says_why_until_it_succeeds(ledger):
    failed = branch(ledger).model_copy(update={"metrics": {}, "curve": [], "files": {}, "tables": {}})
    reason = record_failure(ledger.out, "a-b-0", failed, "Traceback\nValueError: the loss is *not* finite")
    outbox = ledger.outbox
    outbox.send()
    assert ledger.runs["out"].info.status == "RUNNING"
    assert outbox.close("FAILED") == 0
    run, whole = ledger.runs["a/b/0"], ledger.runs["out"]
    assert (run.info.status, whole.info.status) == ("FAILED", "FAILED")
    told = "Failed: ValueError: the loss is \\*not\\* finite (reason.txt"
    assert run.data.tags["mlflow.note.content"].startswith(told)
    assert ledger.artifacts("a/b/0") == {"reason.txt", "record.json"}
    assert whole.data.tags["mlflow.note.content"] == "0 branches finished, 1 failed"
    shutil.rmtree(reason.parent)
    assert ledger.outbox.close("FINISHED") == 0
    run = ledger.runs["a/b/0"]
    assert (run.info.status, run.data.tags["failure"]) == ("FINISHED", "")


def test_what_cannot_be_sent_is_told_once_and_sent_later(ledger, tmp_path, caplog):
    finished_branch(ledger.out, "a/b/0")
    away = ledger.outbox
    away._tracker = Tracker(f"http://127.0.0.1:{free_port()}", EXPERIMENT, "1", "f")
    assert [away.send(), away.send(), away.close("FINISHED")] == [1, 1, 2]
    assert caplog.text.count("no MLflow server answers") == 1
    assert f"results are kept in {ledger.out} and sent later" in caplog.text
    table = (ledger.out / "branches" / "a-b-0" / "tables" / "knn.parquet").rename(tmp_path / "away")
    outbox = ledger.outbox
    assert [outbox.send(), outbox.send(), ledger.outbox.send()] == [1, 1, 1]
    assert caplog.text.count("results are kept") == 3
    finished_branch(ledger.out, "a/b/1")
    assert [outbox.send(), outbox.send()] == [1, 1]  # MLflow answers, so the next complaint is news
    assert caplog.text.count("results are kept") == 4
    table.rename(ledger.out / "branches" / "a-b-0" / "tables" / "knn.parquet")
    assert outbox.send() == 0
    ledger.client.delete_run(ledger.runs["a/b/1"].info.run_id)
    finished_branch(ledger.out, "a/b/1", metrics={"knn.omega": 60.0})
    assert [outbox.send(), outbox.send(), outbox.close("FINISHED")] == [1, 0, 0]
    assert set(ledger.runs) == {"out", "a/b/0", "a/b/1"}
    assert ledger.artifacts("a/b/0") == {"tables", "record.json"}


def test_a_moved_run_keeps_its_artifacts(ledger, monkeypatch):
    monkeypatch.chdir(ledger.out.parent)
    outbox = Outbox(None, Path("out"), EXPERIMENT)
    os.chdir("/")
    branch(ledger)
    assert outbox.close("FINISHED") == 0
    assert set(ledger.runs) == {"out", "one", "a/b/0"}
    moved = ledger.out.rename(ledger.out.with_name("elsewhere"))
    before, ledger.client = (moved / "mlflow.db").read_bytes(), MlflowClient(sqlite_uri(moved / "mlflow.db"))
    find_tracker(None, moved, EXPERIMENT)
    assert (moved / "mlflow.db").read_bytes() == before  # looked at, and left as it is
    open_tracker(None, moved, EXPERIMENT)
    assert ledger.experiment.artifact_location == (moved / "mlartifacts").as_uri()
    table = ledger.client.download_artifacts(ledger.runs["a/b/0"].info.run_id, "tables/knn-k2.5.parquet")
    assert Path(table).read_bytes() == b"a table"


def test_an_experiment_keeps_its_name_and_is_not_made_again_when_it_was_deleted(ledger, tmp_path):
    assert experiment_name(tmp_path / "data", "0123456789", ledger.out) == "out on data 01234567"
    write_record(ledger.out, Record(name="out", identity={}, tags={"experiment": "of before"}))
    assert experiment_name(tmp_path / "data", "other clips", ledger.out) == "of before"
    ledger.outbox.close("FINISHED")
    ledger.client.delete_experiment(ledger.experiment.experiment_id)
    with pytest.raises(InputError, match=r"was deleted in .*; restore it there, or give another --out"):
        print(ledger.outbox)


UPGRADE = r"\); run `mlflow db upgrade sqlite:.* if an older MLflow made it, or move it away"
FAULTS = {
    "BEGIN EXCLUSIVE": r"\(database is locked\); end the process that uses it, or move it away",
    "UPDATE alembic_version SET version_num = 'bd07f7e963c5'": rf"found version bd07f7e963c5.*{UPGRADE}",
    "DROP TABLE alembic_version": rf"found version None.*{UPGRADE}",
}


@pytest.mark.parametrize(("statement", "told"), FAULTS.items(), ids=["locked", "of another MLflow", "of none"])
def test_a_store_that_refuses_ends_no_run(tmp_path, shared, statement, told, caplog):
    uri = empty_store(shared, tmp_path / "mlflow.db")
    finished_branch(tmp_path, "a/b/0")
    with closing(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)) as other:
        other.execute(statement)
        assert Outbox(None, tmp_path, EXPERIMENT).close("FINISHED") == 2
    (line,) = caplog.messages
    assert re.search(f"^MLflow: the MLflow store {uri} cannot be used .*{told}.* and sent later$", line)
    if "BEGIN" in statement:
        assert Outbox(None, tmp_path, EXPERIMENT).close("FINISHED") == 0
    else:
        with pytest.raises(InputError, match=told):
            serve(tmp_path, free_port(), print)


@pytest.mark.parametrize("name", ["run?1", "run%201", "a b#c&d=e", "Läufe's+100%"])
def test_a_store_lies_where_its_folder_is_whatever_its_name(tmp_path, shared, name):
    uri, database = empty_store(shared, tmp_path / name / "mlflow.db"), tmp_path / name / "mlflow.db"
    assert database_of(uri) == database
    before = database.read_bytes()
    MlflowClient(uri).create_experiment("made here")
    assert database.read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert sqlite_uri(tmp_path / "x.db", "timeout=30") == f"sqlite:///{tmp_path / 'x.db'}?timeout=30"


def test_where_a_store_is_shown_and_that_a_password_and_what_cannot_be_served_are_refused(tmp_path):
    away = f"http://127.0.0.1:{free_port()}"
    local = {None: f"tutti ui --out {tmp_path}", "sqlite:///a b.db": "mlflow ui --backend-store-uri 'sqlite:///a b.db'"}
    for uri, told in {**local, away: away}.items():
        assert where_shown(uri, tmp_path) == told
    for uri in (None, "http://host:5000", "http://user@host:5000", "sqlite:////a/b.db"):
        refuse_password(uri)
    with pytest.raises(InputError, match="MLFLOW_TRACKING_PASSWORD"):
        refuse_password("https://user:secret@host")
    with pytest.raises(InputError, match="no such store; a run with --tracking-uri is shown by that server"):
        serve(tmp_path, 0, print)
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 100)
    with pytest.raises(InputError, match=r"mlflow.db cannot be used \(file is not a database\); move it away"):
        serve(tmp_path, 0, print)
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(InputError, match="taken; give another --port"):
        serve(tmp_path, other.getsockname()[1], print)


MACHINE = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=250)
ODD = ["fan", "Lüfter (A)", "Lüfter [A]", "a:b", "a;b", ".", "..", "press*" + 250 * "x", "press+" + 250 * "x", "v1.2"]


def described(folder, metrics, detectors, **known):
    folder.mkdir(parents=True, exist_ok=True)
    known |= {"metrics": metrics, "tables": dict.fromkeys(detectors, "")}
    known |= {"names": {detector: [f"a/{detector}/0", f"c/{detector}/0"] for detector in detectors[1:]}}
    write_record(folder, Record(name="a/b/0", identity={"role": "branch"}, **known))
    return shown(folder / RECORD)


@settings(max_examples=12, deadline=None)
@given(machines=st.just(ODD) | st.lists(MACHINE, min_size=1, max_size=4, unique=True))
def test_machines_of_any_name_have_metrics_of_their_own(tmp_path_factory, machines):
    folder = tmp_path_factory.getbasetemp() / "described"
    metrics = {f"knn.{machine}.{cell}": 50.0 + i for i, machine in enumerate(machines) for cell in ("hmean", "pauc")}
    made = described(folder, {"knn.omega": 60.0, **metrics}, ["knn"]).metrics
    for name in made:
        _validate_metric_name(name)
    assert sorted(made.values()) == sorted([60.0, *metrics.values()])
    assert {f"hmean/{machine}" for machine in {"fan", "v1.2"} & {*machines}} <= made.keys()
    for name, value in metrics.items():  # a name does not depend on the other machines
        assert described(folder, {name: value}, ["knn"]).metrics.items() <= made.items()


def test_the_first_table_gives_a_branch_its_omega_and_each_is_called_as_the_systems_call_it(tmp_path):
    metrics = {"seconds": 2.0, "knn.omega": 2.0, "knn-k2.omega": 1.0, "knn-k2.fan.hmean": 1.0, "knn-k2.5.omega": 3.0}
    metrics["lost.fan.hmean"] = 4.0  # of a table that is not there any more
    files = {"tables/knn.parquet": "", "branch.pt": "", "embeddings.npy": ""}
    look = described(tmp_path, metrics, ["knn-k2", "knn", "knn-k2.5"], files=files)
    figures = {"omega": 1.0, "hmean/fan": 1.0, "a/knn/omega": 2.0, "a/knn-k2.5/omega": 3.0, "cost/seconds": 2.0}
    assert (look.metrics, look.files) == (figures, ["tables/knn.parquet", RECORD])
    assert look.note == "Omega 1.00 % (a/b/0), 2.00 % (a/knn/0), 3.00 % (a/knn-k2.5/0)"
    assert look.name == "a/b/0, a/knn/0, a/knn-k2.5/0"  # the first of an older tutti
    assert look.tags["configuration"] == "a/b, a/knn, c/knn, a/knn-k2.5, c/knn-k2.5"
    assert described(tmp_path, {}, ["knn"]).note == "No labels to measure it by"
    failed = described(tmp_path, {}, [], status="FAILED", tags={"failure": "long " * 3000})
    assert 7000 < len(failed.note) < 8000  # where MLflow cuts


def test_an_evaluation_set_without_labels_has_no_figures_but_weights_and_what_is_half_done_nothing(tmp_path):
    delivered = {"in_sample": None, "lomo": None, "method": "uniform", "weights": {"sub": {"g0": 1.0}}}
    result = {"machines": {"in_sample": None, "lomo": None}, "methods": {}, "omega": None, "delivered": delivered}
    result |= {"system": "one", "headline": "g0 alone", "fusion_id": "", "branches": [], "delivers": "", "made": {}}
    (tmp_path / RESULT).write_text(json.dumps(result))
    assert shown(tmp_path / RESULT).metrics == {"weights/sub/g0": 1.0}
    assert shown(tmp_path / RESULT).note == "g0 alone."
    described(tmp_path / BRANCHES / "b", {}, ["knn"])
    described(tmp_path / BRANCHES / "c", {}, [])  # trained, and not scored yet
    for path in (tmp_path / SYSTEMS / "one" / RESULT, tmp_path / BRANCHES / "half" / RECORD):
        path.parent.mkdir(parents=True)
        path.write_text('{"name"')
    assert [bool(shown(path)) for path in marks(tmp_path)] == [True, False, False, False]


def test_views_have_the_columns_that_matter_in_words_that_the_ui_reads():
    settings = ({"seed": "0", "channel": "near"}, {"seed": "1", "channel": "near"}, {"path": "log_mel"})
    metrics = {"omega": 60.0, "hmean/my.pump": 1.0, "hmean/fan": 1.0, "pauc/fan": 1.0}
    parts = [Shown("b", {}, "", Path(), (), params=p, metrics=metrics, tags={"system": "s"}) for p in settings[:2]]
    parts.append(Shown("baseline", {}, "", Path(), (), params=settings[2], metrics={"hmean/saw": 1.0}))
    view = views.experiment_tags(7, parts)[f"mlflow.sharedViewState.{views.BRANCHES}"]
    state = json.loads(json.loads(view)["state"])
    machines = ["metrics.`omega`", "metrics.`hmean/fan`", "metrics.`hmean/my.pump`"]
    assert state["selectedColumns"] == [*machines, "params.`seed`", "tags.`detector`", "tags.`system`"]
    assert (state["searchFilter"], state["orderByKey"]) == ("tags.role = 'branch'", "metrics.`omega`")
    (chart,) = state["compareRunCharts"]
    assert chart["selectedMetrics"] == ["hmean/my.pump", "hmean/fan", "omega"]  # lines have the colour of the last
    assert views.link("http://host:1/", "7", "v").startswith("http://host:1/#/experiments/7/runs?")
    assert version("mlflow").startswith("3."), "MLflow has another release: open the views that `tutti ui` prints"
    scripts = Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js"
    (code,) = [code for path in scripts.glob("main.*.js") if "viewStateShareKey" in (code := path.read_text())]
    words = "mlflow.sharedViewState. searchFilter orderByKey orderByAsc selectedColumns compareRunCharts PARALLEL"
    assert [word for word in f"{words} compareRunSections metricSectionId".split() if word not in code] == []
