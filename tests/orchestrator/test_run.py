"""Whole runs, with the real Ray, Tune and MLflow."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from mlflow import MlflowClient

from branches.data.synthetic import SyntheticSize, write_dataset
from fusion.methods import METHODS
from scoring.metrics import official_metrics
from scoring.table import metadata_of, read_table
from tests.commands import SMALL_SYSTEM, TUTTI, tutti, tutti_here

pytestmark = pytest.mark.slow(seconds=200)


class Run:
    """A folder with a data set, a system and what runs make of them."""

    def __init__(self, folder: Path) -> None:
        self.data, self.out, self.system = folder / "data", folder / "out", folder / "small.yaml"
        write_dataset(self.data, SyntheticSize(10, 3, 3, 1.0), machines=["rotor", "pump"])
        self.system.write_text(SMALL_SYSTEM)
        self.arguments = ["run", self.system, "--data", self.data, "--out", self.out]

    def again(self, *options: object) -> subprocess.CompletedProcess[str]:
        return tutti(*self.arguments, *options)

    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.out / 'mlflow.db'}")

    def runs(self, role: str):
        client = self.client()
        (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
        return client.search_runs([experiment.experiment_id], f"tags.role = '{role}'")

    def of_systems(self):
        """Runs of all branches but the baseline."""
        return [branch for branch in self.runs("branch") if branch.data.tags["system"]]

    def tables(self) -> list[Path]:
        """Of all branches but the baseline."""
        tables = sorted((self.out / "branches").rglob("tables/*.parquet"))
        return [t for t in tables if "baseline/" not in (t.parents[1] / "record.json").read_text()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def first(run):
    finished = run.again("--json")
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)["systems"]["small"]


def test_every_branch_is_in_mlflow_with_its_tables(run, first):
    runs = run.of_systems()
    assert len(runs) == 2
    (parent,), (system,) = run.runs("run"), run.runs("fusion")
    assert system.data.tags["mlflow.parentRunId"] == parent.info.run_id
    for tracked in runs:
        assert tracked.info.status == "FINISHED"
        assert tracked.data.tags["mlflow.parentRunId"] == system.info.run_id
        assert tracked.data.params["objective.name"] == "softmax"
        assert tracked.data.tags["system"] == "small"
        assert len(run.client().list_artifacts(tracked.info.run_id, "tables")) in (1, 2)
        losses = run.client().get_metric_history(tracked.info.run_id, "loss")
        assert [loss.step for loss in losses] == list(range(1, 11))
    assert len(run.tables()) == 3  # seed 0 has two detectors
    for path in run.tables():
        table = read_table(path)
        assert table.num_rows == 2 * (13 + 12)
        assert metadata_of(table)["branch_id"] in {r.data.tags["branch_id"] for r in runs}


def test_the_result_is_what_the_tables_say(run, first):
    fused = read_table(run.out / "systems" / "small" / "fused.parquet")
    assert first["delivered"]["in_sample"] == pytest.approx(official_metrics(fused).omega)
    assert set(first["methods"]) == set(METHODS)
    assert sum(w for c in first["delivered"]["weights"].values() for w in c.values()) == pytest.approx(1)
    by_table = {
        metadata_of(t)["branch_id"] + "/" + p.stem: official_metrics(t).omega
        for p in run.tables()
        for t in [read_table(p)]
    }
    assert {b["table"]: b["omega"] for b in first["branches"]} == pytest.approx(by_table)
    (tracked,) = run.runs("fusion")
    assert tracked.info.status == "FINISHED"
    assert tracked.data.metrics["omega_in_sample"] == pytest.approx(first["delivered"]["in_sample"], abs=1e-3)
    assert tracked.data.metrics["omega"] == pytest.approx(first["delivered"]["lomo"], abs=1e-3)


def test_report_and_submission_are_written(run, first):
    page = (run.out / "report.html").read_text()
    assert f"{first['delivered']['lomo']:.2f}" in page
    assert "rotor" in page
    files = sorted(p.name for p in (run.out / "submission" / "small").iterdir())
    assert len(files) == 4
    assert len((run.out / "submission" / "small" / files[0]).read_text().splitlines()) == 12


def test_the_baseline_is_a_branch_of_no_system(run, first):
    baseline = first["baseline"]
    table = run.out / "branches" / baseline["table"].replace("/", "/tables/")
    assert official_metrics(read_table(f"{table}.parquet")).omega == pytest.approx(baseline["omega"])
    assert baseline["table"] not in first["delivered"]["table_weights"]
    measured = json.loads(tutti_here("metrics", run.out, "--json").stdout)["tables"]
    assert [m["omega"] for m in measured.values()] == pytest.approx(
        [baseline["omega"], first["delivered"]["in_sample"]]
    )
    (tracked,) = [branch for branch in run.runs("branch") if branch.info.run_name == "baseline/log_mel/0"]
    assert tracked.data.metrics["omega"] == pytest.approx(baseline["omega"], abs=1e-3)
    assert tracked.data.tags["mlflow.parentRunId"] == run.runs("run")[0].info.run_id
    assert "log-mel baseline" in (run.out / "report.html").read_text()
    assert "log-mel baseline" in run.again().stdout


def test_fusion_alone_finds_the_tables_of_a_run(run, first, tmp_path):
    store = f"sqlite:///{run.out / 'mlflow.db'}"
    client = MlflowClient(store)
    (experiment,) = [e.name for e in client.search_experiments() if e.name != "Default"]
    (parent,) = run.runs("run")
    by_store = ["--tracking-uri", store, "--experiment", experiment, "--run", parent.info.run_id]
    sources = {"folder": [run.system, "--tables", run.out], "store": [run.system, *by_store], "names": by_store}
    for name, source in sources.items():
        fused = tutti_here("fuse", *source, "--out", tmp_path / name, "--json")
        assert fused.exit_code == 0, fused.stderr
        found = json.loads(fused.stdout)
        assert found["methods"]["uniform"]["in_sample"] == pytest.approx(first["methods"]["uniform"]["in_sample"])
        assert sorted(found["delivered"]["table_weights"].values()) == pytest.approx(
            sorted(first["delivered"]["table_weights"].values())
        )
    result = tmp_path / "folder" / "result.json"
    applied = tutti_here("fuse", *sources["store"], "--weights", result, "--out", tmp_path / "applied", "--json")
    assert applied.exit_code == 0, applied.stderr
    fused = [read_table(tmp_path / name / "fused.parquet") for name in ("folder", "applied")]
    assert fused[0]["score"].to_numpy() == pytest.approx(fused[1]["score"].to_numpy())
    theirs = run.out / "systems" / "small" / "result.json"
    again = tutti_here("fuse", run.system, "--tables", run.out, "--weights", theirs, "--out", tmp_path / "again")
    assert again.exit_code == 0, again.stderr
    delivered = read_table(theirs.with_name("fused.parquet"))["score"].to_numpy()
    assert read_table(tmp_path / "again" / "fused.parquet")["score"].to_numpy() == pytest.approx(delivered)
    lost = tutti_here("fuse", *by_store[:3], "none", "--out", tmp_path / "lost")
    assert lost.exit_code == 2
    assert "has no experiment 'none'" in lost.stderr


def test_nothing_is_left_behind(run, first):
    assert not list((run.out / "checkpoints").rglob("*.*"))
    assert not list(run.out.rglob("*.tmp"))


def test_a_second_run_finds_everything_and_a_damaged_table_is_made_again(run, first):
    tables = {path: path.read_bytes() for path in run.tables()}
    report = (run.out / "systems" / "small" / "result.json").stat().st_mtime
    for tracked in run.runs("branch"):
        run.client().set_tag(tracked.info.run_id, "record", "")  # as if it had not got everything
    second = run.again("--json")
    assert second.returncode == 0, second.stderr
    assert "starting Ray" not in second.stderr
    assert [bool(tracked.data.tags["record"]) for tracked in run.runs("branch")] == [True, True, True]
    assert "3 of 3 branches finished" in second.stderr
    assert (run.out / "systems" / "small" / "result.json").stat().st_mtime == report
    plan = json.loads(tutti_here("plan", run.system, "--data", run.data, "--out", run.out, "--json").stdout)
    assert [branch["done"] for branch in plan["branches"]] == [True, True, True]

    assert json.loads(second.stdout)["systems"]["small"] == first

    # One branch has lost a table, the other a table and its embeddings.
    _, victim, last = sorted(tables, key=lambda path: (path.stem == "mahalanobis", path))
    victim.write_bytes(tables[victim][:-20])
    last.unlink()
    (last.parent.parent / "embeddings.npy").write_bytes(b"")
    third = run.again("--json")
    assert third.returncode == 0, third.stderr
    assert "1 of 3 branches finished" in third.stderr
    assert third.stderr.count("Omega") == 2
    assert {path: path.read_bytes() for path in run.tables()} == tables
    assert json.loads(third.stdout)["systems"]["small"] == first
    assert len(run.of_systems()) == 2


def test_another_detector_costs_no_second_training(run, first):
    other = run.system.with_name("other.yaml")
    other.write_text(SMALL_SYSTEM.replace("name: small", "name: other").replace("name: knn", "name: knn, k: 3"))
    before = {r.info.run_id: len(run.client().get_metric_history(r.info.run_id, "loss")) for r in run.runs("branch")}
    finished = tutti("run", other, *run.arguments[2:], "--json")
    assert finished.returncode == 0, finished.stderr
    assert "knn-k3" in {b["detector"] for b in json.loads(finished.stdout)["systems"]["other"]["branches"]}
    after = {r.info.run_id: len(run.client().get_metric_history(r.info.run_id, "loss")) for r in run.runs("branch")}
    assert after == before
    assert {r.data.tags["system"] for r in run.of_systems()} == {"other,small"}
    assert '<th colspan="2">other</th><th colspan="2">small</th>' in (run.out / "report.html").read_text()
    assert "3 of 3 branches finished" in run.again().stderr


def test_two_drivers_on_one_folder(run, first):
    with FileLock(run.out / ".lock"):
        refused = run.again()
    assert refused.returncode == 2
    assert "another run is writing to this folder" in refused.stderr


@pytest.mark.faults
def test_a_failing_branch_stops_no_other(tmp_path):
    """A learning rate that diverges fails its branch; the other is kept, and nothing is fused."""
    broken = Run(tmp_path)
    text = SMALL_SYSTEM.replace(
        "neighbours:\n    softmax: {branch: {objective: {name: softmax}}",
        "neighbours:\n    wild: {branch: {training: {steps: 10, crop_seconds: 0.8, learning_rate: 1.0e+30}}",
    )
    broken.system.write_text(text.replace("seeds: [0, 1]", "seeds: [0]"))
    run = broken.again()
    assert run.returncode == 1
    assert "neighbours/wild/0" in run.stderr
    assert "training diverged" in run.stderr
    assert "Traceback" not in run.stderr
    assert {r.data.params["objective.name"]: r.info.status for r in broken.of_systems()} == {
        "softmax": "FINISHED",
        "arcface": "FAILED",
    }
    assert not (broken.out / "systems").exists()

    asked = broken.again("--fuse-incomplete")
    assert asked.returncode == 1
    assert "1 branch failed" in asked.stderr
    result = json.loads((broken.out / "systems" / "small" / "result.json").read_text())
    assert [branch["branch"] for branch in result["branches"]] == ["mahalanobis/softmax/0"]
    assert result["missing"] == ["neighbours/wild/0"]


def test_a_killed_driver_is_taken_up_where_it_stopped(tmp_path):
    killed = Run(tmp_path)
    killed.system.write_text(SMALL_SYSTEM.replace("steps: 10", "steps: 150").replace("seeds: [0, 1]", "seeds: [0]"))
    often = ["--checkpoint-seconds", "0"]
    driver = subprocess.Popen([TUTTI, *map(str, [*killed.arguments, *often])], stderr=subprocess.DEVNULL)
    try:
        _wait_for(lambda: any(torch.load(c)["step"] > 30 for c in (killed.out / "checkpoints").rglob("*.pt")))
    finally:
        driver.kill()
        driver.wait()
    finished = killed.again("--json", *often)
    assert finished.returncode == 0, finished.stderr
    assert {r.info.status for role in ("run", "branch", "fusion") for r in killed.runs(role)} == {"FINISHED"}
    (branch,) = killed.of_systems()
    losses = killed.client().get_metric_history(branch.info.run_id, "loss")
    assert [loss.step for loss in losses] == list(range(3, 151, 3))  # also of the time before the kill
    assert losses[-1].step == 150


def test_one_machine_one_domain_one_class(tmp_path):
    """The shape of a collection from the field, and hidden labels beside it."""
    field = Run(tmp_path)
    field.system.write_text(SMALL_SYSTEM.replace("seeds: [0, 1]", "seeds: [0]"))
    shutil.rmtree(field.data / "rotor")
    for path in list((field.data / "pump").rglob("*_target_*.wav")):
        path.unlink()
    finished = field.again("--json")
    assert finished.returncode == 0, finished.stderr
    assert "all training clips are of one class" in finished.stderr
    result = json.loads(finished.stdout)["systems"]["small"]
    assert result["delivered"]["method"] == "uniform"
    assert result["delivered"]["lomo"] is None
    assert result["machines"]["in_sample"]["pump"]["auc_target"] is None
    assert "<td>–</td>" in (field.out / "report.html").read_text()

    for i, path in enumerate(sorted((field.data / "pump" / "test").iterdir())):
        path.rename(path.with_name(f"section_00_{i:04d}.wav"))
    hidden = field.again("--json")
    assert hidden.returncode == 0, hidden.stderr
    result = json.loads(hidden.stdout)["systems"]["small"]
    assert result["machines"]["in_sample"] is None
    assert result["branches"][0]["omega"] is None
    scores = (field.out / "submission" / "small" / "anomaly_score_pump_section_00_test.csv").read_text()
    assert scores.startswith("section_00_0000.wav,")


def _wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.3)
