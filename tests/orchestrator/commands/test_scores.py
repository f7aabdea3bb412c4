"""`tutti metrics`; and with ground truth that came after the run, and tables of other teams. For `fuse` see fuse/."""

import json

import pytest

from scoring.calibration import transductive_normalisation
from scoring.metrics import official_metrics
from scoring.table import read_table, write_table
from tests.commands import tutti_here
from tests.orchestrator.package_case import LABEL, write_truth
from tests.tables import make_table


@pytest.fixture(scope="module")
def truth(case, tmp_path_factory):
    """A folder with the ground truth of one of the two machines."""
    folder = tmp_path_factory.mktemp("evaluator")
    rows = read_table(case.run / "systems" / "s1" / "fused.parquet").to_pylist()
    write_truth(folder, "fan", [row for row in rows if row["machine"] == "fan"])
    return folder


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
    assert one["omega"] == expected.omega
    assert one["machines"] == expected.as_dict()["machines"]
    assert one["ci"]["omega"][0] < expected.omega < one["ci"]["omega"][1]
    assert one["decisions"]["fan"]["recall"] is not None
    assert not one["transductive"]
    assert measured(first, second)["tables"][str(first)] == one
    run = tutti_here("metrics", first)
    low, high = one["ci"]["omega"]
    assert run.stdout.splitlines()[-1].split("  ")[-1] == f"{expected.omega:.2f} ({low:.1f}–{high:.1f})"
    assert "precision" in run.stdout
    assert run.stderr == ""


def test_metrics_of_a_table_without_training_rows(tmp_path):
    write_table(transductive_normalisation(make_table(train=0)), tmp_path / "t.parquet")
    run = tutti_here("metrics", tmp_path / "t.parquet")
    assert run.exit_code == 0
    assert "precision" not in run.stdout
    assert "no decisions: machine fan section 0 has 0 training clips" in run.stderr
    assert "statistics of test clips have reached these scores" in run.stderr


def test_metrics_are_of_the_machines_with_ground_truth(teams, truth):
    (_, two), fused = teams
    machines = {"fan": official_metrics(read_table(fused)).as_dict()["machines"]["fan"]}
    found = measured(fused, "--ground-truth", truth)
    assert found["machines"] == machines
    assert found["decisions"]["fan"]["recall"] is not None
    others = official_metrics(read_table(fused.parents[1] / "s2" / "fused.parquet")).as_dict()["machines"]
    assert measured(two, "--ground-truth", truth)["machines"] == {"fan": others["fan"]}


def test_other_teams_scores_take_part_in_a_fusion(teams, tmp_path):
    """Without training rows, as teams submit them: folders of CSV files beside a table of ours."""
    systems, fused = teams
    omega = measured(*systems)["tables"][str(systems[0])]["omega"]
    assert omega == pytest.approx(official_metrics(read_table(fused)).omega)
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "theirs").symlink_to(systems[1])
    (tables / "ours.parquet").symlink_to(fused)
    fuse = ["fuse", "--tables", tables, "--out", tmp_path / "out"]
    refused = tutti_here(*fuse)
    assert refused.exit_code == 2
    assert "--transductive-normalisation" in refused.stderr
    run = tutti_here(*fuse, "--transductive-normalisation", "--json")
    assert run.exit_code == 0, run.stderr
    assert set(json.loads(run.stdout)["delivered"]["table_weights"]) == {"ours", "theirs"}
    applied = [*fuse[:-1], tmp_path / "again", "--weights", tmp_path / "out" / "result.json"]
    assert tutti_here(*applied, "--transductive-normalisation").exit_code == 0
    rows = [read_table(tmp_path / out / "fused.parquet").num_rows for out in ("out", "again")]
    assert rows[0] == rows[1]
