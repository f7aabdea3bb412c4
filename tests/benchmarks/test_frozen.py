"""Six embeddings of a frozen network in one pass against six passes, as a ratio measured in one run.

Run by `make bench`.
"""

import time

import pytest

from branches.audio.cache import open_cache
from branches.data.dataset import read_index
from branches.data.synthetic import SyntheticSize, write_dataset
from branches.frozen import frozen_embeddings
from branches.spec import PROJECTION, BranchSpec

pytestmark = pytest.mark.benchmark

POOLINGS = ["mean", "generalised_mean", "band_mean", *({"name": "relative_deviation", "gamma": g} for g in (4, 6, 8))]


def test_one_pass_with_six_embeddings_against_six_passes(tmp_path):
    write_dataset(tmp_path / "data", SyntheticSize(60, 4, 4, 4.0), machines=["rotor", "valve"])
    audio = open_cache(tmp_path / "data", read_index(tmp_path / "data"), tmp_path / "cache")
    specs = [BranchSpec.model_validate({"strategy": "frozen", "pooling": pooling}) for pooling in POOLINGS]
    inputs = [i for spec in specs for i in spec.frozen_inputs([PROJECTION])]
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
