"""What branches share of a frozen network, as ratios measured in one run: the pass over the clips, and their start."""

import multiprocessing
from itertools import count

import pytest

from branches.audio.cache import open_cache
from branches.audio.channels import with_cancellation
from branches.data.dataset import read_index
from branches.data.synthetic import SyntheticSize, write_dataset
from branches.frozen import frozen_embeddings
from branches.spec import BranchSpec, PatchesSpec
from tests.benchmarks.measured import fastest

pytestmark = pytest.mark.benchmark

POOLINGS = ["mean", "band_statistics", "band_mean", *({"name": "relative_deviation", "gamma": g} for g in (4, 6, 8))]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """136 clips."""
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, SyntheticSize(60, 4, 4, 4.0), machines=["rotor", "valve"])
    return folder


def test_one_pass_with_six_embeddings_against_six_passes(data, tmp_path):
    audio = open_cache(data, read_index(data), tmp_path / "cache")
    spec = BranchSpec.model_validate({"strategy": "frozen"})
    inputs = spec.frozen_inputs([PatchesSpec.model_validate({"pooling": pooling}) for pooling in POOLINGS])
    fresh = (tmp_path / str(i) for i in count())

    def embed(*groups):
        for group in groups:
            frozen_embeddings(group[0], group, audio, next(fresh), "cpu")

    together, alone = fastest(lambda: embed(inputs), lambda: embed(*([one] for one in inputs)), rounds=3)
    print(f"\n{len(inputs)} embeddings: one pass {together:.2f} s, one by one {alone:.2f} s: {alone / together:.1f}×")
    assert alone > 4 * together


def start_branch(data, folder):
    """What a branch does before it trains."""
    wanted = BranchSpec.model_validate({"strategy": "frozen", "backbone": "small"}), PatchesSpec()
    audio = with_cancellation(open_cache(data, read_index(data), folder / "clips"), folder / "derived")
    frozen_embeddings(wanted, [wanted], audio, folder / "derived", "cpu")


def test_eight_branches_that_start_at_once_against_one(data, tmp_path):
    """Decoding, cancellation and the frozen pass are done once for all of a node."""
    fresh = (tmp_path / str(i) for i in count())
    with multiprocessing.get_context("spawn").Pool(8) as pool:

        def start(branches):
            pool.starmap(start_branch, [(data, next(fresh))] * branches, chunksize=1)

        start(8)  # imports
        one, eight = fastest(lambda: start(1), lambda: start(8), rounds=3)
    print(f"\nto frozen embeddings: one branch {one:.1f} s, eight at once {eight:.1f} s: {eight / one:.2f}×")
    assert eight < 1.5 * one
