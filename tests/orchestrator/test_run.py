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


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the finished run that may be changed."""
    return run.copy(tmp_path)


def path_of(run, table):
    """Of a score table, such as `2a3ba43b43857d92/knn`."""
    return run.out / "branches" / f"{table.replace('/', '/tables/')}.parquet"


def tables_of(run, branch=""):
    """Paths of the score tables of all branches but the baseline, or of one such as `trained/lora/0`."""
    return {b["table"]: path_of(run, b["table"]) for b in run.result["branches"] if b["branch"].startswith(branch)}


def test_every_branch_is_in_mlflow_with_its_tables(run):
    store = Store(run.out)
    (parent,), (system,) = store.runs("run"), store.runs("fusion")
    assert system.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert {tracked.info.run_name for tracked in store.branches()} == {b["branch"] for b in run.result["branches"]}
    for tracked in store.branches():
        assert tracked.info.status == "FINISHED"
        assert tracked.data.tags["mlflow.parentRunId"] == system.info.run_id
        assert tracked.data.tags["system"] == NAME
        tables = store.client.list_artifacts(tracked.info.run_id, "tables")
        assert {table.path.rpartition("/")[2] for table in tables} == {
            path.name for path in tables_of(run, tracked.info.run_name).values()
        }
        trained = tracked.info.run_name.startswith("trained")
        assert store.losses(tracked) == (list(range(1, 7)) if trained else [])
    objectives = {t.data.params.get("objective.name") for t in store.branches()}
    assert objectives >= {"arcface", "subcluster_adacos", "softmax"}


def test_the_result_is_what_the_tables_say(run):
    result, delivered = run.result, run.result["delivered"]
    measured = official_metrics(run.fused())
    assert list(measured.machines) == ["rotor"]  # the labels of the other are hidden
    assert delivered["in_sample"] == pytest.approx(measured.omega)
    assert (delivered["method"], delivered["lomo"]) == ("uniform", None)  # nothing can be tested on one machine
    assert set(result["methods"]) == set(METHODS)
    assert sum(w for c in delivered["weights"].values() for w in c.values()) == pytest.approx(1)
    for branch in result["branches"]:
        table = read_table(path_of(run, branch["table"]))
        assert metadata_of(table)["branch_id"] == branch["table"].partition("/")[0]
        assert branch["omega"] == pytest.approx(official_metrics(table).omega)
    (tracked,) = Store(run.out).runs("fusion")
    assert tracked.info.status == "FINISHED"
    assert tracked.data.metrics["omega_in_sample"] == pytest.approx(delivered["in_sample"], abs=1e-3)


def test_report_and_submission_are_written(run):
    page = (run.out / "report.html").read_text()
    assert f"{run.result['delivered']['in_sample']:.2f}" in page
    assert "rotor" in page
    files = sorted(path.name for path in (run.out / "submission" / NAME).iterdir())
    assert len(files) == 4
    scores = (run.out / "submission" / NAME / "anomaly_score_pump_section_00_test.csv").read_text().splitlines()
    assert len(scores) == 12
    assert scores[0].startswith("section_00_0000.wav,")


def test_the_baseline_is_a_branch_of_no_system(run):
    baseline = run.result["baseline"]
    table = read_table(path_of(run, baseline["table"]))
    assert baseline["omega"] == pytest.approx(official_metrics(table).omega)
    assert baseline["table"] not in run.result["delivered"]["table_weights"]
    measured = json.loads(tutti_here("metrics", run.out, "--json").stdout)["tables"]
    assert [m["omega"] for m in measured.values()] == pytest.approx(
        [baseline["omega"], run.result["delivered"]["in_sample"]]
    )
    store = Store(run.out)
    (tracked,) = [branch for branch in store.runs("branch") if branch.info.run_name == "baseline/log_mel/0"]
    assert tracked.data.metrics["omega"] == pytest.approx(baseline["omega"], abs=1e-3)
    assert tracked.data.tags["mlflow.parentRunId"] == store.runs("run")[0].info.run_id
    assert "log-mel baseline" in (run.out / "report.html").read_text()


def test_fusion_alone_takes_the_tables_of_a_run_from_its_folder_or_its_store(run, tmp_path):
    store = Store(run.out)
    (parent,) = store.runs("run")
    names = ["--tracking-uri", store.uri, "--experiment", store.experiment.name, "--run", parent.info.run_id]
    weights = ["--weights", run.out / "systems" / NAME / "result.json"]
    sources = {
        "folder": [run.system, "--tables", run.out],
        "store": [run.system, *names],
        "weights": [run.system, *names, *weights],
        "again": [run.system, "--tables", run.out, *weights],
    }
    for name, source in sources.items():
        fused = tutti_here("fuse", *source, "--out", tmp_path / name, "--json")
        assert fused.exit_code == 0, fused.stderr
        scores = read_table(tmp_path / name / "fused.parquet")["score"].to_numpy()
        assert scores == pytest.approx(run.fused()["score"].to_numpy()), name
    named = tutti_here("fuse", *names, "--out", tmp_path / "named", "--json")  # along the tree that names say
    assert len(json.loads(named.stdout)["delivered"]["table_weights"]) == len(tables_of(run))
    lost = tutti_here("fuse", *names[:3], "none", "--out", tmp_path / "lost")
    assert lost.exit_code == 2
    assert "has no experiment 'none'" in lost.stderr


def test_nothing_is_left_behind(run):
    assert not list((run.out / "checkpoints").rglob("*.*"))
    assert not list(run.out.rglob("*.tmp"))


def test_a_second_run_has_nothing_to_do(copy, run):
    store = Store(copy.out)
    for tracked in store.runs("branch"):
        store.client.set_tag(tracked.info.run_id, "record", "")  # as if it had not got everything
    before = checksums(copy.out / "branches")
    again = tutti("run", copy.system, "--data", copy.data, "--out", copy.out, "--json")
    assert again.returncode == 0, again.stderr
    assert "starting Ray" not in again.stderr
    assert "8 of 8 branches finished" in again.stderr
    assert json.loads(again.stdout)["systems"] == run.printed["systems"]
    assert checksums(copy.out / "branches") == before
    assert all(tracked.data.tags["record"] for tracked in store.runs("branch"))
    plan = json.loads(tutti_here("plan", copy.system, "--data", copy.data, "--out", copy.out, "--json").stdout)
    assert all(branch["done"] for branch in plan["branches"])


def test_what_is_lost_is_made_again_and_another_detector_costs_no_training(copy, run):
    """One branch has lost a table, another one a table and its embeddings; a second system takes another detector."""
    before = checksums(copy.out / "branches")
    lora, full = (next(iter(tables_of(copy, branch).values())) for branch in ("trained/lora/0", "trained/full/0"))
    lora.write_bytes(lora.read_bytes()[:-20])
    full.unlink()
    (full.parents[1] / "embeddings.npy").write_bytes(b"")
    losses = {tracked.info.run_id: Store(copy.out).losses(tracked) for tracked in Store(copy.out).branches()}
    text = copy.system.read_text().replace(f"name: {NAME}", "name: other").replace("knn, k: 2", "knn, k: 3")
    (copy.folder / "other.yaml").write_text(text)
    finished = tutti("run", copy.system, copy.folder / "other.yaml", "--data", copy.data, "--out", copy.out, "--json")
    assert finished.returncode == 0, finished.stderr
    assert "6 of 8 branches finished" in finished.stderr
    systems = json.loads(finished.stdout)["systems"]
    assert systems[NAME] == run.result
    assert "knn-k3" in {b["detector"] for b in systems["other"]["branches"]}
    after = checksums(copy.out / "branches")
    assert {path: after[path] for path in before if not path.endswith("record.json")} == {
        path: checksum for path, checksum in before.items() if not path.endswith("record.json")
    }
    store = Store(copy.out)
    assert {tracked.info.run_id: store.losses(tracked) for tracked in store.branches()} == losses
    assert {tracked.data.tags["system"] for tracked in store.branches()} == {f"{NAME},other"}
    assert f'<th colspan="2">{NAME}</th><th colspan="2">other</th>' in (copy.out / "report.html").read_text()


def test_two_drivers_on_one_folder(copy):
    with FileLock(copy.out / ".lock"):
        refused = tutti_here("run", copy.system, "--data", copy.data, "--out", copy.out)
    assert refused.exit_code == 2
    assert "another run is writing to this folder" in refused.stderr


def test_a_killed_driver_is_taken_up_where_it_stopped(dataset, tmp_path):
    """On data of which one machine has a single domain."""
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
    (branch,) = store.branches()
    assert store.losses(branch) == list(range(3, 151, 3))  # also of the time before the kill

    result = json.loads(finished.stdout)["systems"]["small"]
    held_out = result["machines"]["lomo"]
    assert held_out.keys() == {"rotor", "pump"}
    assert result["machines"]["in_sample"]["pump"]["auc_target"] is None
    assert "<td>–</td>" in (out / "report.html").read_text()
    (system_run,) = store.runs("fusion")
    assert system_run.data.metrics["omega"] == pytest.approx(result["delivered"]["lomo"], abs=1e-3)


@pytest.mark.faults
def test_a_failing_branch_stops_no_other(dataset, tmp_path):
    """A learning rate that diverges fails its branch; the other is kept, and nothing is fused unless asked for."""
    text = SMALL_SYSTEM.replace(
        "neighbours:\n    softmax: {branch: {objective: {name: softmax}}",
        "neighbours:\n    wild: {branch: {training: {steps: 10, crop_seconds: 0.8, learning_rate: 1.0e+30}}",
    )
    (tmp_path / "broken.yaml").write_text(text.replace("[0, 1]", "[0]"))
    out = tmp_path / "out"
    command = ["run", tmp_path / "broken.yaml", "--data", dataset, "--out", out]
    run = tutti(*command)
    assert run.returncode == 1
    assert "neighbours/wild/0" in run.stderr
    assert "training diverged" in run.stderr
    assert "Traceback" not in run.stderr
    statuses = {branch.data.params["objective.name"]: branch.info.status for branch in Store(out).branches()}
    assert statuses == {"softmax": "FINISHED", "arcface": "FAILED"}
    assert not (out / "systems").exists()

    asked = tutti(*command, "--fuse-incomplete")
    assert asked.returncode == 1
    assert "1 branch failed" in asked.stderr
    result = json.loads((out / "systems" / "small" / "result.json").read_text())
    assert [branch["branch"] for branch in result["branches"]] == ["mahalanobis/softmax/0"]
    assert result["missing"] == ["neighbours/wild/0"]
