"""Commands, as far as they are no more than the modules that they call."""

import json
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

from branches.data.synthetic import SyntheticSize
from orchestrator.cost import duration
from orchestrator.submit import run_command, shipped
from scoring.calibration import transductive_normalisation
from scoring.errors import InputError
from scoring.metrics import official_metrics
from scoring.table import read_table, write_table
from tests.commands import SMALL_SYSTEM, checksums, parsed, tutti_here
from tests.orchestrator.package_case import LABEL, write_truth
from tests.tables import make_table


def test_a_data_set_is_made_and_checked_and_neither_a_second_time_nor_by_the_demo_overwritten(monkeypatch, tmp_path):
    monkeypatch.setattr("branches.data.synthetic.DEMO", SyntheticSize(3, 2, 1, 1.0))
    data = tmp_path / "data"
    made, checked = tutti_here("data", "synth", data, "--seed", 3), tutti_here("data", "check", data, "--json")
    found, before = json.loads(checked.stdout), checksums(data)
    assert (made.exit_code, checked.exit_code, found["problems"], len(found["machines"]) >= 3) == (0, 0, [], True)
    assert made.stdout == f"{found['clips']} clips in {data}\n"
    again = tutti_here("data", "synth", data)
    assert (again.exit_code, len(again.stderr.splitlines())) == (2, 1)
    for out in (tmp_path, tmp_path / "other"):
        assert "no Ray cluster answers" in tutti_here("demo", "--out", out, "--address", "127.0.0.1:1").stderr
    assert checksums(data) == before
    assert checksums(tmp_path / "other" / "data").items().isdisjoint(before.items())  # of another seed


@pytest.mark.slow
def test_clips_that_cannot_be_used_are_named_by_the_check_and_by_a_run_before_it_trains(dataset, store, tmp_path):
    shutil.copytree(dataset / "rotor" / "train", tmp_path / "rotor" / "train")
    empty, cut, *_ = sorted((tmp_path / "rotor" / "train").iterdir())
    cut.write_bytes(cut.read_bytes()[:5000])
    options = ["--data", tmp_path, "--out", tmp_path / "out", "--tracking-uri", f"sqlite:///{store}"]
    run = tutti_here("run", "demo", *options)
    assert (run.exit_code, f"{cut.name}: truncated" in run.stderr.splitlines()[-1]) == (2, True)
    assert "starting Ray" not in run.stderr
    empty.write_bytes(b"")
    check = tutti_here("data", "check", tmp_path)
    for told in (empty.name, f"{cut.name}: truncated", f"Error: {tmp_path}: 2 of 13 clips cannot be used"):
        assert told in check.stderr


def test_plan_lists_the_branches_and_their_cost_also_without_the_checkpoint(dataset, tmp_path):
    plan = ["plan", "s1", "s2", "--data", dataset, "--backbone", "tiny"]
    result = json.loads(tutti_here(*plan, "--json").stdout)
    branches, costs = result["branches"], (result["gpu_hours"], result["cpu_hours"])
    # The one of s1 is among the ten of s2; the baseline belongs to no system.
    assert len(branches) == len({branch["branch_id"] for branch in branches}) == 11
    assert branches[0]["systems"] == ["s1", "s2"]
    assert {branch["done"] for branch in branches} == {None}
    assert sum(branch["pflop"] for branch in branches) == 100 * 3.6 * costs[0] > 0
    assert [table["name"] for table in result["tables"]] == [branch["name"] for branch in branches]
    *rows, last = tutti_here(*plan, "--out", tmp_path).stdout.splitlines()
    gpu, cpu = (duration(3600 * hours) for hours in costs)
    assert last == f"10 trainings, 11 tables, 11 to do: about {gpu} of a GPU at 100 TFLOP/s, or {cpu} of a CPU core"
    assert ["to do" in row for row in rows] == [False, *[True] * 11]
    assert not list(tmp_path.iterdir())
    without = tutti_here("plan", "s1", "--data", dataset)
    assert (without.exit_code, "1 training, 2 tables, 2 to do" in without.stdout) == (0, True)
    for told in ("BEATs_iter3.pt: no such file", "provisional"):
        assert told in without.stderr


def test_addresses_come_from_the_environment_as_everywhere_else(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://m:5000")
    monkeypatch.setenv("RAY_ADDRESS", "r:6379")
    given = parsed("run", "demo", "--data", "d", "--out", "o")
    assert (given["tracking_uri"], given["address"]) == ("http://m:5000", "r:6379")


def measured(*arguments):
    run = tutti_here("metrics", *arguments, "--json")
    assert run.exit_code == 0, run.output
    return json.loads(run.stdout)


def test_metrics_of_one_of_several_and_of_a_table_without_training_rows(tmp_path):
    tables = make_table(seed=0), make_table(seed=1), transductive_normalisation(make_table(train=0))
    first, second, bare = paths = [tmp_path / f"{number}.parquet" for number in range(3)]
    for table, path in zip(tables, paths, strict=True):
        write_table(table, path)
    expected, one = official_metrics(tables[0]), measured(first)
    assert (one["omega"], one["machines"]) == (expected.omega, expected.as_dict()["machines"])
    low, high = one["ci"]["omega"]
    assert low < expected.omega < high
    assert (one["decisions"]["fan"]["recall"] is not None, one["transductive"]) == (True, False)
    assert measured(first, second)["tables"][str(first)] == one
    run = tutti_here("metrics", first)
    assert run.stdout.splitlines()[-1].endswith(f" {expected.omega:.2f} ({low:.1f}–{high:.1f})")
    assert ("precision" in run.stdout, run.stderr) == (True, "")
    run = tutti_here("metrics", bare)
    assert (run.exit_code, "precision" in run.stdout) == (0, False)
    for told in ("no decisions: machine fan section 0 has 0 training clips", "of test clips have reached these scores"):
        assert told in run.stderr


def test_other_teams_scores_are_measured_with_ground_truth_and_take_part_in_a_fusion(case, tmp_path):
    """Without training rows, as teams submit them: folders of CSV files beside a table of ours."""
    systems = [case.folder / "task2" / f"{LABEL}_{n}" for n in (1, 2)]
    fused, other = (case.run / "systems" / name / "fused.parquet" for name in ("s1", "s2"))
    omega = measured(*systems)["tables"][str(systems[0])]["omega"]
    assert omega == pytest.approx(official_metrics(read_table(fused)).omega)
    write_truth(tmp_path, "fan", [row for row in read_table(fused).to_pylist() if row["machine"] == "fan"])
    for given, same, decided in ((fused, fused, True), (systems[1], other, False)):
        found = measured(given, "--ground-truth", tmp_path)
        assert found["machines"] == {"fan": official_metrics(read_table(same)).as_dict()["machines"]["fan"]}
        assert bool(found["decisions"]) == decided
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "theirs").symlink_to(systems[1])
    (tmp_path / "tables" / "ours.parquet").symlink_to(fused)
    fuse = ["fuse", "--tables", tmp_path / "tables", "--transductive-normalisation", "--json", "--out"]
    refused = tutti_here(*fuse[:3], "--out", tmp_path / "out")
    assert (refused.exit_code, "--transductive-normalisation" in refused.stderr) == (2, True)
    run = tutti_here(*fuse, tmp_path / "out")
    assert set(json.loads(run.stdout)["delivered"]["table_weights"]) == {"ours", "theirs"}
    assert tutti_here(*fuse, tmp_path / "again", "--weights", tmp_path / "out" / "result.json").exit_code == 0
    scores = [read_table(tmp_path / out / "fused.parquet")["score"].to_pylist() for out in ("out", "again")]
    assert scores[0] == pytest.approx(scores[1])


def test_systems_are_listed_and_shown_as_they_will_be_used():
    listed = json.loads(tutti_here("systems", "--json").stdout)["systems"]
    lines = tutti_here("systems").stdout.splitlines()
    assert [line.partition(" (")[0] for line in lines] == [system["name"] for system in listed]
    assert "s2 (10 score tables): System 2 of the report" in "\n".join(lines)
    shown = tutti_here("show", "s1", "--backbone", "tiny", "--set", "branch.training.steps=30")
    (branch,) = [c["branch"] for c in yaml.safe_load(shown.stdout)["subsystems"]["mahalanobis"].values()]
    assert branch["backbone"]["path"] == "tiny"
    assert branch["training"].items() >= {"steps": 30, "accumulation": 1}.items()  # given, and a default
    assert json.loads(tutti_here("show", "s1", "--json").stdout)["name"] == "s1"


def test_what_is_shipped_is_small_and_runs_alone(tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL_SYSTEM)
    with shipped([str(tmp_path / "small.yaml"), "demo"]) as (folder, names):
        assert names == ["system0.yaml", "demo"]
        assert (folder / names[0]).read_text() == SMALL_SYSTEM
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 3 << 20
        code = "import orchestrator, importlib.metadata as m; print(orchestrator.__file__, m.version('tutti-asd'))"
        assert subprocess.check_output([sys.executable, "-c", code], cwd=folder, env={}).startswith(bytes(folder))
    assert not folder.exists()


EVERY_OPTION = [
    *["--backbone", "/b.pt", "--set", "branch.training.steps=3", "--set", "detector=knn", "--json", "--compile"],
    *["--tracking-uri", "http://m:5000", "--storage", "s3://b/r", "--checkpoint-seconds", "0", "--fuse-incomplete"],
    *["--gpus-per-branch", "0.5", "--memory-per-branch", "2", "--cpus-per-branch", "3"],
]


def options_of_a_job(*more):
    """What `submit` hands on to the run."""
    words = ["submit", "s1", "--data", "/d a", "--out", "/o", "--address", "http://127.0.0.1:1", *more]
    return {key: value for key, value in parsed(*words).items() if key not in ("systems", "address", "no_follow")}


def test_the_command_of_a_job_is_a_run_with_the_same_options_without_relative_paths_and_passwords():
    assert None not in options_of_a_job(*EVERY_OPTION).values()
    for given in (options_of_a_job(), options_of_a_job(*EVERY_OPTION)):
        words = shlex.split(run_command(["s1"], given))
        assert words[:4] == ["python", "-m", "orchestrator", "run"]
        assert parsed(*words[3:]) == {**given, "systems": ("s1",), "address": "auto"}
    for option, value, message in (
        ("--out", "o", "--out o: give the absolute path"),
        ("--backbone", "BEATs.pt", "--backbone BEATs.pt: give the absolute path"),
        ("--storage", "s3://key:secret@b/r", "--storage has a password in it"),
        ("--set", "branch.backbone.path=https://me:secret@b/c.pt", "--set has a password in it"),
    ):
        with pytest.raises(InputError, match=f"^{message}"):
            run_command(["s1"], options_of_a_job(option, value))
