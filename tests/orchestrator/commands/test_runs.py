import json
import shutil

import pytest

from branches.data.synthetic import SyntheticSize
from orchestrator.cost import duration
from tests.commands import tutti_here


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
    assert run.exit_code == 0
    assert "2 branches, 2 to train" in run.stdout
    assert "BEATs_iter3.pt: no such file" in run.stderr
    assert "provisional" in run.stderr


def test_addresses_come_from_the_environment_as_everywhere_else(monkeypatch, dataset, tmp_path):
    run = ["run", "demo", "--data", dataset, "--out", tmp_path / "out"]
    for name, address, what in (
        ("RAY_ADDRESS", "127.0.0.1:1", "Ray cluster"),
        ("MLFLOW_TRACKING_URI", "http://127.0.0.1:1", "MLflow server"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, address)
            refused = tutti_here(*run)
        assert refused.exit_code == 2
        assert f"no {what} answers at {address}" in refused.stderr


def test_the_demo_makes_its_data_once(monkeypatch, tmp_path):
    monkeypatch.setattr("branches.data.synthetic.DEMO", SyntheticSize(1, 1, 1, 1.0))
    folders = []
    for _ in range(2):
        assert "no Ray cluster answers" in tutti_here("demo", "--out", tmp_path, "--address", "127.0.0.1:1").stderr
        folders.append((tmp_path / "data").stat().st_ino)
    assert folders[0] == folders[1]


@pytest.mark.slow
def test_a_clip_that_cannot_be_used_is_named_before_anything_is_trained(dataset, store, tmp_path):
    shutil.copytree(dataset / "pump", tmp_path / "pump")
    clip = min((tmp_path / "pump" / "train").iterdir())
    clip.write_bytes(clip.read_bytes()[:5000])
    options = ["--data", tmp_path, "--out", tmp_path / "out", "--tracking-uri", f"sqlite:///{store}"]
    run = tutti_here("run", "demo", *options)
    assert run.exit_code == 2
    assert f"{clip.name}: truncated" in run.stderr.splitlines()[-1]
    assert "starting Ray" not in run.stderr
