"""Branches that are given up: what is delivered without them."""

import json

import pytest

from branches.data.dataset import Dataset
from branches.data.synthetic import SyntheticSize, write_dataset
from cluster.session import Cluster
from orchestrator.ledger.folders import GIVEN_UP, RECORD
from orchestrator.plan import make_plan
from orchestrator.run_options import RunOptions
from orchestrator.system import load_system
from orchestrator.training.missing import train_missing, unfinished
from tests.commands import tutti

SYSTEM = """
name: mixed
branch:
  embedding_dim: 16
  pooling: band_mean
  objective: softmax
  training: {steps: 40, batch_size: 8, crop_seconds: 0.8, learning_rate: 1.0e-3, warmup_steps: 1}
subsystems:
  one:
    learning: {}
    lame: {branch: {training: {steps: 40, batch_size: 8, crop_seconds: 0.8, learning_rate: 3.0, warmup_steps: 1}}}
"""


@pytest.mark.slow
def test_a_branch_that_learns_nothing_is_given_up_and_not_tried_again(tmp_path):
    data, out, system = tmp_path / "data", tmp_path / "out", tmp_path / "mixed.yaml"
    write_dataset(data, SyntheticSize(8, 3, 2, 1.0), machines=["rotor", "pump"])
    system.write_text(SYSTEM)
    command = ["run", system, "--data", data, "--out", out, "--json"]
    without = tutti(*command, "--stop-hopeless")
    assert without.returncode == 0, without.stderr
    assert "one/lame/0: given up at step" in without.stderr
    result = json.loads(without.stdout)["systems"]["mixed"]
    assert result["missing"] == ["one/lame/0"]
    assert [branch["branch"] for branch in result["branches"]] == ["one/learning/0"]
    (record,) = (out / GIVEN_UP).glob(f"*/{RECORD}")
    assert json.loads(record.read_text())["status"] == "KILLED"
    assert not list((out / "checkpoints").rglob("*.pt"))

    dataset = Dataset.read(data)
    plan = make_plan([load_system(str(system))], dataset)
    options = RunOptions(data, out, stop_hopeless=True)
    assert train_missing(plan, dataset, options, Cluster("local")) is None  # nothing is tried again

    assert [branch.name for branch in unfinished(plan.branches, out)] == ["one/lame/0"]
