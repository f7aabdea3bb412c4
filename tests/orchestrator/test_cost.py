"""The cost of a branch follows the size of its backbone, which is read off a file that is there."""

import shutil

import pytest

from branches.checkpoint_files import SMALL
from branches.spec import BranchSpec
from orchestrator.cost import core_gflops, duration, petaflop


def branch(path, **settings):
    return BranchSpec.model_validate({"backbone": {"path": str(path)}, **settings})


def cost(path, clips=1000, **settings):
    return petaflop(branch(path, **settings), clips)


def test_the_size_of_a_file_counts(tmp_path):
    copy = shutil.copy(SMALL, tmp_path / "mine.pt")
    assert cost(copy) == pytest.approx(cost("small"), rel=0.6)  # the file is in half precision
    assert cost(tmp_path / "not_yet_there.pt") > 50 * cost(copy)
    speeds = [core_gflops(branch(path)) for path in ("tiny", "small", "not_yet_there.pt")]
    assert speeds == sorted(set(speeds))


def test_what_is_not_trained_costs_less_and_every_clip_that_is_seen_counts():
    costs = [cost("tiny", strategy=name) for name in ("frozen", "head", "lora", "full")]
    assert costs == sorted(set(costs))
    assert cost("tiny", 2000, strategy="frozen") == 2 * costs[0]
    for setting, usual in (("steps", 10_000), ("batch_size", 32), ("accumulation", 1), ("crop_seconds", 10)):
        twice = cost("tiny", strategy="full", training={setting: 2 * usual})
        assert twice - costs[0] == pytest.approx(2 * (costs[-1] - costs[0]))


def test_durations():
    times = [duration(seconds) for seconds in (8.2, 89, 91, 5300, 11100)]
    assert times == ["8 s", "89 s", "2 min", "88 min", "3 h 05 min"]
