"""What branches share of a frozen network, as ratios measured in one run: the pass over the clips, and their start.

Run by `make bench`.
"""

import multiprocessing
import time

import pytest

from branches.audio.cache import open_cache
from branches.audio.channels import with_cancellation
from branches.data.dataset import read_index
from branches.data.synthetic import SyntheticSize, write_dataset
from branches.frozen import frozen_embeddings
from branches.spec import BranchSpec, PatchesSpec

pytestmark = pytest.mark.benchmark

POOLINGS = ["mean", "band_statistics", "band_mean", *({"name": "relative_deviation", "gamma": g} for g in (4, 6, 8))]


def test_one_pass_with_six_embeddings_against_six_passes(tmp_path):
    write_dataset(tmp_path / "data", SyntheticSize(60, 4, 4, 4.0), machines=["rotor", "valve"])
    audio = open_cache(tmp_path / "data", read_index(tmp_path / "data"), tmp_path / "cache")
    spec = BranchSpec.model_validate({"strategy": "frozen"})
    inputs = spec.frozen_inputs([PatchesSpec.model_validate({"pooling": pooling}) for pooling in POOLINGS])
    seconds = {"together": [], "one by one": []}
    for i in range(3):
        for name, groups in (("together", [inputs]), ("one by one", [[one] for one in inputs])):
            start = time.perf_counter()
            for j, group in enumerate(groups):
                frozen_embeddings(group[0], group, audio, tmp_path / f"{name}{i}{j}", "cpu")
            seconds[name].append(time.perf_counter() - start)
    together, alone = (min(s) for s in seconds.values())
    print(f"\n{len(inputs)} embeddings: one pass {together:.2f} s, one by one {alone:.2f} s: {alone / together:.1f}×")
    assert alone > 4 * together


def start_branch(data, folder, together):
    """What a branch does before it trains."""
    index = read_index(data)
    wanted = BranchSpec.model_validate({"strategy": "frozen", "backbone": "small"}), PatchesSpec()
    together.wait(300)
    audio = with_cancellation(open_cache(data, index, folder / "clips"), folder / "derived")
    frozen_embeddings(wanted, [wanted], audio, folder / "derived", "cpu")
    together.wait(300)


def test_eight_branches_that_start_at_once_against_one(tmp_path):
    """Decoding, cancellation and the frozen pass are done once for all of a node."""
    write_dataset(tmp_path / "data", SyntheticSize(60, 4, 4, 4.0), machines=["rotor", "valve"])
    context, seconds = multiprocessing.get_context("spawn"), {1: [], 8: []}
    for i in range(3):
        for branches in seconds:
            together = context.Barrier(branches + 1)
            arguments = (tmp_path / "data", tmp_path / f"{branches}-{i}", together)
            processes = [context.Process(target=start_branch, args=arguments) for _ in range(branches)]
            for process in processes:
                process.start()
            together.wait(300)
            start = time.perf_counter()
            together.wait(300)
            seconds[branches].append(time.perf_counter() - start)
            for process in processes:
                process.join()
                assert process.exitcode == 0
    one, eight = (min(s) for s in seconds.values())
    print(f"\nto frozen embeddings: one branch {one:.1f} s, eight at once {eight:.1f} s: {eight / one:.2f}×")
    assert eight < 1.5 * one
