"""Branches that start at once on a node: its clips are decoded once, and its frozen backbone runs once, for all."""

import multiprocessing
import os
import uuid

import numpy as np
import pytest

from branches import frozen
from branches.audio import cache, channels
from branches.audio.cache import open_cache
from branches.audio.channels import with_cancellation
from branches.data.dataset import read_index
from branches.data.synthetic import SyntheticSize, write_dataset
from branches.frozen import frozen_embeddings
from branches.spec import BranchSpec, PatchesSpec

pytestmark = pytest.mark.slow(seconds=20)
BRANCHES = 4


def counted(module, name, folder):
    """Leave a file for each call of a function of a module."""
    function = getattr(module, name)

    def call(*arguments, **settings):
        (folder / f"{os.getpid()}-{uuid.uuid4().hex}").touch()
        return function(*arguments, **settings)

    setattr(module, name, call)


def start_branch(root, together, number):
    """What a branch does before it trains, from the same moment on as the others."""
    for module, name in ((cache, "read_clip"), (channels, "_cancelled"), (frozen, "embed")):
        (root / name).mkdir(exist_ok=True)
        counted(module, name, root / name)
    index = read_index(root / "data")
    spec = BranchSpec.model_validate({"strategy": "frozen"})
    inputs = spec.frozen_inputs([PatchesSpec.model_validate({"pooling": pooling}) for pooling in ("mean", "band_mean")])
    together.wait(120)
    audio = with_cancellation(open_cache(root / "data", index, root / "cache" / "clips"), root / "cache" / "derived")
    embeddings = frozen_embeddings(inputs[number % 2], inputs, audio, root / "cache" / "derived", "cpu")
    np.save(root / f"embeddings-{number}.npy", embeddings)


def test_what_branches_share_is_computed_once_on_a_node(tmp_path):
    write_dataset(tmp_path / "data", SyntheticSize(3, 1, 1, 1.0), machines=["rotor"])
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(BRANCHES)
    branches = [context.Process(target=start_branch, args=(tmp_path, together, n)) for n in range(BRANCHES)]
    for branch in branches:
        branch.start()
    for branch in branches:
        branch.join(200)
        assert branch.exitcode == 0
    clips = read_index(tmp_path / "data").num_rows
    calls = {name: list((tmp_path / name).iterdir()) for name in ("read_clip", "_cancelled", "embed")}
    processes = {name: {path.name.partition("-")[0] for path in made} for name, made in calls.items()}
    assert {name: len(made) for name, made in processes.items()} == {"read_clip": 1, "_cancelled": 1, "embed": 1}
    assert len(calls["read_clip"]) == clips
    made = [np.load(tmp_path / f"embeddings-{number}.npy") for number in range(BRANCHES)]
    assert np.array_equal(made[0], made[2])
    assert np.array_equal(made[1], made[3])
