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


def test_a_data_set_is_made_checked_and_not_overwritten(monkeypatch, tmp_path):
    monkeypatch.setattr("branches.data.synthetic.DEMO", SyntheticSize(3, 2, 1, 1.0))
    made = tutti_here("data", "synth", tmp_path / "data", "--seed", 3)
    assert made.exit_code == 0, made.stderr
    checked = tutti_here("data", "check", tmp_path / "data", "--json")
    found = json.loads(checked.stdout)
    assert (checked.exit_code, found["problems"], len(found["machines"]) >= 3) == (0, [], True)
    assert made.stdout == f"{found['clips']} clips in {tmp_path / 'data'}\n"
    again = tutti_here("data", "synth", tmp_path / "data")
    assert (again.exit_code, len(again.stderr.splitlines())) == (2, 1)
    assert tutti_here("data", "synth", tmp_path / "other").exit_code == 0
    assert checksums(tmp_path / "other").items().isdisjoint(checksums(tmp_path / "data").items())


@pytest.mark.slow
def test_clips_that_cannot_be_used_are_named_by_the_check_and_by_a_run_before_it_trains(dataset, store, tmp_path):
    shutil.copytree(dataset / "rotor" / "train", tmp_path / "rotor" / "train")
    clips = sorted((tmp_path / "rotor" / "train").iterdir())
    clips[1].write_bytes(clips[1].read_bytes()[:5000])
    options = ["--data", tmp_path, "--out", tmp_path / "out", "--tracking-uri", f"sqlite:///{store}"]
    run = tutti_here("run", "demo", *options)
    assert run.exit_code == 2
    assert f"{clips[1].name}: truncated" in run.stderr.splitlines()[-1]
    assert "starting Ray" not in run.stderr
    clips[0].write_bytes(b"")
    check = tutti_here("data", "check", tmp_path)
    assert check.exit_code == 2
    for told in (clips[0].name, f"{clips[1].name}: truncated", f"Error: {tmp_path}: 2 of 13 clips cannot be used"):
        assert told in check.stderr


def test_plan_lists_the_branches_and_their_cost(dataset, tmp_path):
    plan = ["plan", "s1", "s2", "--data", dataset, "--backbone", "tiny"]
    result = json.loads(tutti_here(*plan, "--json").stdout)
    assert len(result["branches"]) == 11  # the one of s1 is among the ten of s2; the baseline belongs to no system
    assert result["branches"][0]["systems"] == ["s1", "s2"]
    assert {branch["done"] for branch in result["branches"]} == {None}
    assert len({branch["branch_id"] for branch in result["branches"]}) == 11
    costs = result["gpu_hours"], result["cpu_hours"]
    assert sum(branch["pflop"] for branch in result["branches"]) == 100 * 3.6 * costs[0] > 0
    *rows, last = tutti_here(*plan, "--out", tmp_path).stdout.splitlines()
    gpu, cpu = (duration(3600 * hours) for hours in costs)
    assert last == f"11 branches, 11 to train: about {gpu} of a GPU at 100 TFLOP/s, or {cpu} of a CPU core"
    assert ["to train" in row for row in rows] == [False, *[True] * 11]
    assert not list(tmp_path.iterdir())


def test_plan_without_the_checkpoint_says_so(dataset):
    run = tutti_here("plan", "s1", "--data", dataset)
    assert (run.exit_code, "2 branches, 2 to train" in run.stdout) == (0, True)
    assert "BEATs_iter3.pt: no such file" in run.stderr
    assert "provisional" in run.stderr


def test_addresses_come_from_the_environment_as_everywhere_else(monkeypatch, dataset, tmp_path):
    for name, address, what in (
        ("MLFLOW_TRACKING_URI", "http://127.0.0.1:1", "MLflow server"),
        ("RAY_ADDRESS", "127.0.0.1:1", "Ray cluster"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, address)
            refused = tutti_here("run", "demo", "--data", dataset, "--out", tmp_path / "out")
        assert (refused.exit_code, f"no {what} answers at {address}" in refused.stderr) == (2, True)


def test_the_demo_makes_its_data_once(monkeypatch, tmp_path):
    monkeypatch.setattr("branches.data.synthetic.DEMO", SyntheticSize(1, 1, 1, 1.0))
    folders = set()
    for _ in range(2):
        assert "no Ray cluster answers" in tutti_here("demo", "--out", tmp_path, "--address", "127.0.0.1:1").stderr
        folders.add((tmp_path / "data").stat().st_ino)
    assert len(folders) == 1


@pytest.fixture(scope="module")
def teams(case):
    """The systems of a package, as other teams submit them, and the fused table of the first."""
    return [case.folder / "task2" / f"{LABEL}_{n}" for n in (1, 2)], case.run / "systems" / "s1" / "fused.parquet"


def measured(*arguments):
    run = tutti_here("metrics", *arguments, "--json")
    assert run.exit_code == 0, run.output
    return json.loads(run.stdout)


def test_metrics_of_one_and_of_several_tables(tmp_path):
    first, second = tmp_path / "0.parquet", tmp_path / "1.parquet"
    for seed, path in enumerate((first, second)):
        write_table(make_table(seed=seed), path)
    expected = official_metrics(make_table(seed=0))
    one = measured(first)
    assert (one["omega"], one["machines"]) == (expected.omega, expected.as_dict()["machines"])
    assert one["ci"]["omega"][0] < expected.omega < one["ci"]["omega"][1]
    assert (one["decisions"]["fan"]["recall"] is not None, one["transductive"]) == (True, False)
    assert measured(first, second)["tables"][str(first)] == one
    run = tutti_here("metrics", first)
    low, high = one["ci"]["omega"]
    assert run.stdout.splitlines()[-1].endswith(f" {expected.omega:.2f} ({low:.1f}–{high:.1f})")
    assert "precision" in run.stdout
    assert run.stderr == ""


def test_metrics_of_a_table_without_training_rows(tmp_path):
    write_table(transductive_normalisation(make_table(train=0)), tmp_path / "t.parquet")
    run = tutti_here("metrics", tmp_path / "t.parquet")
    assert run.exit_code == 0
    assert "precision" not in run.stdout
    assert "no decisions: machine fan section 0 has 0 training clips" in run.stderr
    assert "statistics of test clips have reached these scores" in run.stderr


def test_metrics_are_of_the_machines_with_ground_truth(teams, tmp_path):
    (_, two), fused = teams
    write_truth(tmp_path, "fan", [row for row in read_table(fused).to_pylist() if row["machine"] == "fan"])
    for given, same in ((fused, fused), (two, fused.parents[1] / "s2" / "fused.parquet")):
        found = measured(given, "--ground-truth", tmp_path)
        assert found["machines"] == {"fan": official_metrics(read_table(same)).as_dict()["machines"]["fan"]}
        assert (given == two) == (found["decisions"] == {})


def test_other_teams_scores_take_part_in_a_fusion(teams, tmp_path):
    """Without training rows, as teams submit them: folders of CSV files beside a table of ours."""
    systems, fused = teams
    omega = measured(*systems)["tables"][str(systems[0])]["omega"]
    assert omega == pytest.approx(official_metrics(read_table(fused)).omega)
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "theirs").symlink_to(systems[1])
    (tmp_path / "tables" / "ours.parquet").symlink_to(fused)
    fuse = ["fuse", "--tables", tmp_path / "tables", "--out", tmp_path / "out"]
    refused = tutti_here(*fuse)
    assert (refused.exit_code, "--transductive-normalisation" in refused.stderr) == (2, True)
    run = tutti_here(*fuse, "--transductive-normalisation", "--json")
    assert run.exit_code == 0, run.stderr
    assert set(json.loads(run.stdout)["delivered"]["table_weights"]) == {"ours", "theirs"}
    applied = [*fuse[:-1], tmp_path / "again", "--weights", tmp_path / "out" / "result.json"]
    assert tutti_here(*applied, "--transductive-normalisation").exit_code == 0
    rows = [read_table(tmp_path / out / "fused.parquet").num_rows for out in ("out", "again")]
    assert rows[0] == rows[1]


def test_systems_are_listed_and_shown_as_they_will_be_used():
    listed = json.loads(tutti_here("systems", "--json").stdout)["systems"]
    assert {"s1", "s2", "s3", "s4", "s5", "demo"} <= {system["name"] for system in listed}
    lines = tutti_here("systems").stdout.splitlines()
    assert len(lines) == len(listed)
    assert "s2 (10 score tables): System 2 of the report" in "\n".join(lines)
    shown = tutti_here("show", "s1", "--backbone", "tiny", "--set", "branch.training.steps=30")
    (branch,) = [c["branch"] for c in yaml.safe_load(shown.stdout)["subsystems"]["mahalanobis"].values()]
    assert branch["backbone"]["path"] == "tiny"
    assert branch["training"].items() >= {"steps": 30, "accumulation": 1}.items()  # given, and a default
    assert json.loads(tutti_here("show", "s1", "--json").stdout)["name"] == "s1"


EVERY_OPTION = [
    *["--backbone", "/b.pt", "--set", "branch.training.steps=3", "--set", "detector=knn", "--json", "--compile"],
    *["--tracking-uri", "http://m:5000", "--storage", "s3://b/r", "--checkpoint-seconds", "0", "--fuse-incomplete"],
    *["--gpus-per-branch", "0.5", "--memory-per-branch", "2", "--cpus-per-branch", "3"],
]


def test_what_is_shipped_is_small_and_runs_alone(tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL_SYSTEM)
    with shipped([str(tmp_path / "small.yaml"), "demo"]) as (folder, names):
        assert names == ["system0.yaml", "demo"]
        assert (folder / names[0]).read_text() == SMALL_SYSTEM
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 2 << 20
        code = "import orchestrator, importlib.metadata as m; print(orchestrator.__file__, m.version('tutti-asd'))"
        assert subprocess.check_output([sys.executable, "-c", code], cwd=folder, env={}).startswith(bytes(folder))
    assert not folder.exists()


def options_of_a_job(*more):
    """What `submit` hands on to the run."""
    words = ["submit", "s1", "--data", "/d a", "--out", "/o", "--address", "http://127.0.0.1:1", *more]
    return {key: value for key, value in parsed(*words).items() if key not in ("systems", "address", "no_follow")}


@pytest.mark.parametrize("options", [[], EVERY_OPTION])
def test_the_command_of_a_job_is_a_run_with_the_same_options(options):
    given = options_of_a_job(*options)
    assert not options or None not in given.values()
    words = shlex.split(run_command(["s1"], given))
    assert words[:4] == ["python", "-m", "orchestrator", "run"]
    assert parsed(*words[3:]) == {**given, "systems": ("s1",), "address": "auto"}


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--out", "o", "--out o: give the absolute path"),
        ("--backbone", "BEATs.pt", "--backbone BEATs.pt: give the absolute path"),
        ("--storage", "s3://key:secret@b/r", "--storage has a password in it"),
        ("--set", "branch.backbone.path=https://me:secret@b/c.pt", "--set has a password in it"),
    ],
)
def test_what_a_cluster_must_not_be_sent(option, value, message):
    with pytest.raises(InputError, match=f"^{message}"):
        run_command(["s1"], options_of_a_job(option, value))
