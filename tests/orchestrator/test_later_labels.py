"""Commands with ground truth that came after the run, and with tables of other teams."""

import json

import pytest

from scoring.metrics import official_metrics
from scoring.table import read_table
from tests.commands import tutti_here
from tests.orchestrator.package_case import LABEL, Case, clip_paths


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    root = tmp_path_factory.mktemp("case")
    return Case(root), truth(root / "evaluator", "fan")


def truth(folder, machine):
    """Ground truth of one of the two machines."""
    clips = [path.rpartition("/")[2] for path in clip_paths(machine, labelled=True) if "/test/" in path]
    for kind, word in (("data", "anomaly"), ("domain", "target")):
        path = folder / f"ground_truth_{kind}" / f"ground_truth_{machine}_section_00_test.csv"
        path.parent.mkdir(parents=True)
        path.write_text("".join(f"{clip},{int(word in clip)}\n" for clip in clips))
    return folder


def test_metrics_are_of_the_machines_with_ground_truth(case):
    case, folder = case
    fused = case.run / "systems" / "s1" / "fused.parquet"
    run = tutti_here("metrics", fused, "--ground-truth", folder, "--json")
    measured = json.loads(run.stdout)
    assert measured["machines"] == {"fan": official_metrics(read_table(fused)).as_dict()["machines"]["fan"]}
    assert measured["decisions"]["fan"]["recall"] is not None


def test_the_systems_of_a_package_are_measured(case):
    case, folder = case
    one, two = (case.folder / "task2" / f"{LABEL}_{n}" for n in (1, 2))
    run = tutti_here("metrics", one, two, "--ground-truth", folder, "--json")
    assert run.exit_code == 0, run.output
    expected = official_metrics(read_table(case.run / "systems" / "s2" / "fused.parquet")).as_dict()["machines"]["fan"]
    assert json.loads(run.stdout)["tables"][str(two)]["machines"]["fan"] == expected


def test_other_teams_scores_take_part_in_a_fusion(case, tmp_path):
    """Without training rows, as teams submit them: folders of CSV files beside a table of ours."""
    case, _ = case
    systems = [case.folder / "task2" / f"{LABEL}_{n}" for n in (1, 2)]
    measured = json.loads(tutti_here("metrics", *systems, "--json").stdout)["tables"]
    fused = case.run / "systems" / "s1" / "fused.parquet"
    assert measured[str(systems[0])]["omega"] == pytest.approx(official_metrics(read_table(fused)).omega)
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "theirs").symlink_to(systems[1])
    (tables / "ours.parquet").symlink_to(fused)
    refused = tutti_here("fuse", "--tables", tables, "--out", tmp_path / "out")
    assert refused.exit_code == 2
    assert "--transductive-normalisation" in refused.stderr
    run = tutti_here("fuse", "--tables", tables, "--out", tmp_path / "out", "--transductive-normalisation", "--json")
    assert run.exit_code == 0, run.stderr
    assert set(json.loads(run.stdout)["delivered"]["table_weights"]) == {"ours", "theirs"}
    applied = ["fuse", "--weights", tmp_path / "out" / "result.json", "--tables", tables, "--out", tmp_path / "again"]
    assert tutti_here(*applied, "--transductive-normalisation").exit_code == 0
    assert (
        read_table(tmp_path / "again" / "fused.parquet").num_rows
        == read_table(tmp_path / "out" / "fused.parquet").num_rows
    )
