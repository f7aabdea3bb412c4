"""The cost of a branch follows the size of its backbone, which is read off a file that is there."""

import shutil

import pytest

from branches.checkpoint_files import SMALL
from branches.spec import BranchSpec
from orchestrator.cost import duration, petaflop


def cost(path, **settings):
    return petaflop(BranchSpec.model_validate({"backbone": {"path": str(path)}, **settings}), 1000)


def test_the_size_of_a_file_counts(tmp_path):
    copy = shutil.copy(SMALL, tmp_path / "mine.pt")
    assert cost(copy) == pytest.approx(cost("small"), rel=0.6)  # the file is in half precision
    assert cost(tmp_path / "not_yet_there.pt") > 50 * cost(copy)


def test_what_is_not_trained_costs_less():
    costs = [cost("tiny", strategy=name) for name in ("frozen", "head", "lora", "full")]
    assert costs == sorted(set(costs))


def test_durations():
    assert [duration(seconds) for seconds in (8.2, 89, 91, 5300, 11100)] == [
        "8 s",
        "89 s",
        "2 min",
        "88 min",
        "3 h 05 min",
    ]
