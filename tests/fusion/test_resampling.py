import numpy as np
import pytest

from fusion.resampling import compare
from tests.fusion.pools import labelled, make_pool, rng


@pytest.fixture(scope="module")
def compared():
    scores = labelled(make_pool())
    better = scores.values[:2].mean(axis=0)
    values = np.stack([better, scores.values[2], better, scores.values[0]])
    members = scores.with_values(values, ("better", "useless", "itself", "half of it"))
    return members.omega(np.eye(4)), compare(members, rng())


def test_gains_are_told_from_noise(compared):
    omega, (interval, gains) = compared
    assert interval[0] < omega[0] < interval[1]
    assert gains["useless"].gain == pytest.approx(omega[0] - omega[1])
    assert gains["useless"].clips[0] > 5
    assert gains["useless"].machines[0] > 5


def test_pairs_share_their_clips(compared):
    _, (interval, gains) = compared
    assert gains["itself"].clips == gains["itself"].machines == (0, 0)
    low, high = gains["half of it"].clips
    assert high - low < interval[1] - interval[0]


def test_intervals_cover_the_truth():
    """95 % intervals of two equal systems' difference on 40 generated data sets miss 0 seldom."""
    covered = 0
    for seed in range(40):
        scores = labelled(make_pool(("fan",), 15))
        noise = np.random.default_rng(seed).normal(size=(2, scores.values.shape[1]))
        anomaly = np.zeros(scores.values.shape[1])
        anomaly[scores.cells.rows[scores.cells.positive[0] > 0]] = 1
        _, gains = compare(scores.with_values(noise + anomaly, ("one", "equal")), rng(seed))
        covered += gains["equal"].clips[0] <= 0 <= gains["equal"].clips[1]
    assert covered >= 34
