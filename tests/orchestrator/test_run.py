"""Whole runs, with the real Ray, Tune and MLflow."""

import json
import shutil
import subprocess

import pytest
from filelock import FileLock

from fusion.methods import METHODS
from scoring.metrics import official_metrics
from scoring.table import metadata_of, read_table
from tests.cluster.conftest import step_of, wait_for
from tests.commands import SMALL_SYSTEM, TUTTI, checksums, tutti, tutti_here
from tests.finished import NAME, Store

pytestmark = pytest.mark.slow(seconds=120)


def path_of(run, table):
    return run.out / "branches" / f"{table.replace('/', '/tables/')}.parquet"


def tables_of(run, branch):
    (first,) = [path_of(run, b["table"]) for b in run.result["branches"] if b["branch"] == branch]
    return [first, *sorted({*first.parent.iterdir()} - {first})]


def test_branches_are_in_mlflow_and_the_result_is_what_their_tables_say_reported_and_submitted(run):
    store = Store(run.out)
    (parent,), (system,) = store.runs("run"), store.runs("fusion")
    assert (system.info.status, system.data.tags["mlflow.parentRunId"]) == ("FINISHED", parent.info.run_id)
    names = [tracked.info.run_name for tracked in store.branches()]
    assert sorted(", ".join(names).split(", ")) == sorted(b["branch"] for b in run.result["branches"])
    assert "trained/full/0, neighbours/full/0, patches/full/0" in names
    for tracked in store.branches():
        name = tracked.info.run_name.split(", ")[0]
        assert tracked.info.status == "FINISHED"
        assert tracked.data.tags.items() >= {"mlflow.parentRunId": system.info.run_id, "system": NAME}.items()
        tables = store.client.list_artifacts(tracked.info.run_id, "tables")
        assert {table.path for table in tables} == {f"tables/{path.name}" for path in tables_of(run, name)}
        assert store.losses(tracked) == (list(range(1, 7)) if name.startswith("trained") else [])
    assert {t.data.params.get("objective.name") for t in store.branches()} > {"arcface", "subcluster_adacos", "softmax"}
    result, delivered, baseline = run.result, run.result["delivered"], run.result["baseline"]
    measured = official_metrics(run.fused())
    assert list(measured.machines) == ["rotor"]  # the labels of the other are hidden
    assert delivered["in_sample"] == pytest.approx(measured.omega)
    assert (delivered["method"], delivered["lomo"]) == ("uniform", None)  # nothing can be tested on one machine
    assert set(result["methods"]) == set(METHODS)
    assert sum(w for c in delivered["weights"].values() for w in c.values()) == pytest.approx(1)
    assert baseline["table"] not in delivered["table_weights"]
    for branch in [*result["branches"], baseline]:
        table = read_table(path_of(run, branch["table"]))
        assert metadata_of(table)["branch_id"] == branch["table"].partition("/")[0]
        assert branch["omega"] == pytest.approx(official_metrics(table).omega)
    omegas = [baseline["omega"], delivered["in_sample"]]
    of_all = {b["branch"]: b["omega"] for b in result["branches"]}
    of_all |= {baseline["name"]: omegas[0], f"system {NAME}": omegas[1]}
    tables = json.loads(tutti_here("metrics", run.out, "--json").stdout)["tables"]
    ranked = {m["name"]: m["omega"] for m in tables.values()}
    assert ranked == pytest.approx(of_all)
    assert [*ranked.values()] == sorted(ranked.values(), reverse=True)
    printed = tutti_here("metrics", run.out).stdout
    assert printed.index("system golden") < printed.index(min(of_all, key=of_all.get))
    assert "in-sample," not in printed  # no label has chosen a weight
    tracked = {branch.info.run_name: branch.data.metrics["omega"] for branch in Store(run.out).runs("branch")}
    assert tracked["baseline/log_mel/0"] == pytest.approx(omegas[0], abs=1e-3)
    page = (run.out / "report.html").read_text()
    for shown in (f"{run.result['delivered']['in_sample']:.2f}", "rotor", "log-mel baseline"):
        assert shown in page
    submission = run.out / "submission" / NAME
    assert len(list(submission.iterdir())) == 4
    scores = (submission / "anomaly_score_pump_section_00_test.csv").read_text().splitlines()
    assert (len(scores), scores[0].partition(",")[0]) == (12, "section_00_0000.wav")
    assert not [*(run.out / "checkpoints").rglob("*.*"), *run.out.rglob("*.tmp")]


def test_a_second_run_has_nothing_to_do_and_beside_another_one_it_is_refused(run, tmp_path):
    copy = run.copy(tmp_path)
    store, before = Store(copy.out), checksums(copy.out / "branches")
    for tracked in store.runs("branch"):
        store.client.set_tag(tracked.info.run_id, "record", "")  # as if it had not got everything
    places = [copy.system, "--data", copy.data, "--out", copy.out, "--json"]
    with FileLock(copy.out / ".lock"):
        refused = tutti_here("run", *places)
    assert (refused.exit_code, "another run is writing to this folder" in refused.stderr) == (2, True)
    again = tutti("run", *places)
    assert again.returncode == 0, again.stderr
    assert "starting Ray" not in again.stderr
    assert "8 of 8 branches finished" in again.stderr
    assert json.loads(again.stdout)["systems"] == run.printed["systems"]
    assert checksums(copy.out / "branches") == before
    assert all(tracked.data.tags["record"] for tracked in store.runs("branch"))
    assert all(branch["done"] for branch in json.loads(tutti_here("plan", *places).stdout)["branches"])


def test_a_run_is_fused_again_by_its_own_records_from_its_folder_its_store_or_copies_of_its_tables(run, tmp_path):
    copied = tutti_here("tables", run.out, tmp_path / "scores")
    assert copied.stdout == f"10 score tables in {tmp_path / 'scores'}\n"
    assert "exists already" in tutti_here("tables", run.out, tmp_path / "scores").stderr
    names = [branch["branch"] for branch in run.result["branches"]]
    assert [line.split(",")[0] for line in (tmp_path / "scores" / "index.csv").read_text().split()[1:]] == names
    store = Store(run.out)
    (parent,) = store.runs("run")
    stored = ["--tracking-uri", store.uri, "--experiment", store.experiment.name, "--run", parent.info.run_id]
    requests = ["--tables", run.out], [NAME, "--tables", run.out], ["--tables", tmp_path / "scores"], stored
    for i, request in enumerate((*requests, [run.system, *stored])):
        fused = json.loads(tutti_here("fuse", *request, "--out", tmp_path / str(i), "--json").stdout)
        assert [branch["branch"] for branch in fused["branches"]] == names
        assert fused["delivered"]["weights"] == run.result["delivered"]["weights"]
        assert read_table(tmp_path / str(i) / "fused.parquet").equals(run.fused())
    weights = ["--weights", run.out / "systems" / NAME, "--out", tmp_path / "applied"]
    for folder in (run.out, tmp_path / "scores"):
        assert tutti_here("fuse", *weights, "--tables", folder).exit_code == 0
        assert read_table(tmp_path / "applied" / "fused.parquet").equals(run.fused())


def test_a_killed_driver_is_taken_up_where_it_stopped(dataset, tmp_path):
    data, out, system = shutil.copytree(dataset, tmp_path / "data"), tmp_path / "out", tmp_path / "small.yaml"
    for path in (data / "pump").rglob("*_target_*.wav"):
        path.unlink()
    system.write_text(SMALL_SYSTEM.replace("steps: 10", "steps: 150").replace("[0, 1]", "[0]"))
    command = ["run", system, "--data", data, "--out", out, "--checkpoint-seconds", "0"]
    driver = subprocess.Popen([TUTTI, *map(str, command)], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: any(step_of(checkpoint) > 30 for checkpoint in (out / "checkpoints").rglob("*.pt")))
    finally:
        driver.kill()
        driver.wait()
    finished = tutti(*command, "--json")
    assert finished.returncode == 0, finished.stderr
    store = Store(out)
    assert {run.info.status for role in ("run", "branch", "fusion") for run in store.runs(role)} == {"FINISHED"}
    (branch,), (fusion,) = store.branches(), store.runs("fusion")
    assert store.losses(branch) == list(range(3, 151, 3))  # also of the time before the kill
    result = json.loads(finished.stdout)["systems"]["small"]
    assert fusion.data.metrics["omega"] == pytest.approx(result["delivered"]["lomo"], abs=1e-3)
    assert result["machines"]["lomo"].keys() == {"rotor", "pump"}
    assert result["machines"]["in_sample"]["pump"]["auc_target"] is None
    assert "<td>–</td>" in (out / "report.html").read_text()


@pytest.mark.faults
def test_a_failing_branch_stops_no_other(dataset, tmp_path):
    wild = "wild: {branch: {training: {steps: 10, crop_seconds: 0.8, learning_rate: 1.0e+30}}, detector"
    text = SMALL_SYSTEM.replace("softmax: {branch: {objective: {name: softmax}}, detector", wild)
    (tmp_path / "broken.yaml").write_text(text.replace("[0, 1]", "[0]"))
    out = tmp_path / "out"
    command = ["run", tmp_path / "broken.yaml", "--data", dataset, "--out", out]
    run = tutti(*command)
    told = [text in run.stderr for text in ("neighbours/wild/0", "training diverged", "Traceback")]
    assert (run.returncode, told) == (1, [True, True, False])
    statuses = {branch.data.params["objective.name"]: branch.info.status for branch in Store(out).branches()}
    assert statuses == {"softmax": "FINISHED", "arcface": "FAILED"}
    assert not (out / "systems").exists()
    asked = tutti(*command, "--fuse-incomplete")
    assert (asked.returncode, "1 branch failed" in asked.stderr) == (1, True)
    result = json.loads((out / "systems" / "small" / "result.json").read_text())
    assert [branch["branch"] for branch in result["branches"]] == ["mahalanobis/softmax/0"]
    assert result["missing"] == ["neighbours/wild/0"]
