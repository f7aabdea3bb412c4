import numpy as np
import pytest

from fusion.complementarity import correlations, marginals
from tests.fusion.pools import MACHINES, labelled, make_pool


@pytest.fixture(scope="module")
def scores():
    return labelled(make_pool())


def test_correlation_inside_machines(scores):
    twice = correlations(scores.with_values(np.stack([scores.values[0], 3 * scores.values[0], scores.values[2]])))
    assert twice[0, 1] == pytest.approx(1)
    assert abs(twice[0, 2]) < 0.2
    expected = np.mean([np.corrcoef(scores.values[:, rows]) for rows in scores.cells.rows], axis=0)
    assert correlations(scores) == pytest.approx(expected)
    one = correlations(scores.with_values(np.zeros((1, scores.values.shape[1]))))
    assert one.tolist() == [[0]]


def test_a_good_member_is_missed_and_a_useless_one_is_not(scores):
    lost = marginals(scores, dict.fromkeys(MACHINES, np.full(4, 0.25)))
    assert lost[2] < 0 < lost[0]
    expected = scores.omega(np.full(4, 0.25)) - scores.omega(np.array([0, 1, 1, 1]) / 3)
    assert lost[0] == pytest.approx(expected)
    assert marginals(scores, dict.fromkeys(MACHINES, np.eye(4)[1]))[1] is None
