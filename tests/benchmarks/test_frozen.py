"""Frozen branches computed together against one by one, as a ratio measured in one run.

Run by `make bench`.
"""

import time

import pytest

from branches.audio.cache import open_cache
from branches.data.dataset import read_index
from branches.data.synthetic import SyntheticSize, write_dataset
from branches.frozen import View, embed_views

pytestmark = pytest.mark.benchmark

POOLINGS = ["mean", "generalised_mean", "band_mean", *({"name": "relative_deviation", "gamma": g} for g in (4, 6, 8))]


def test_frozen_branches_together_against_one_by_one(tmp_path):
    write_dataset(tmp_path / "data", SyntheticSize(60, 4, 4, 4.0), machines=["rotor", "valve"])
    audio = open_cache(tmp_path / "data", read_index(tmp_path / "data"), tmp_path / "cache")
    views = [View.model_validate({"backbone": {}, "channel": "near", "pooling": pooling}) for pooling in POOLINGS]
    seconds = {"together": [], "one by one": []}
    for _ in range(3):
        for name, groups in (("together", [views]), ("one by one", [[view] for view in views])):
            start = time.perf_counter()
            for group in groups:
                embed_views(group, audio, "cpu")
            seconds[name].append(time.perf_counter() - start)
    together, alone = (min(s) for s in seconds.values())
    print(f"\n{len(views)} frozen branches: {together:.2f} s together, {alone:.2f} s alone: {alone / together:.1f}×")
