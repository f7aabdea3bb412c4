import numpy as np
import pytest

from fusion.complementarity import correlations, marginals, prune, winners
from scoring.metrics import harmonic_mean
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


def test_the_best_of_each_machine(scores):
    found = winners(scores)
    assert set(found) == set(MACHINES)
    for machine, (name, hmean) in found.items():
        cells = scores.only([machine]).objective.cells(np.eye(4))
        assert hmean == pytest.approx(harmonic_mean(cells, axis=(-2, -1)).max())
        assert name != "p0"


def test_a_good_member_is_missed_and_a_useless_one_is_not(scores):
    lost = marginals(scores, dict.fromkeys(MACHINES, np.full(4, 0.25)))
    assert lost[2] < 0 < lost[0]
    expected = scores.omega(np.full(4, 0.25)) - scores.omega(np.array([0, 1, 1, 1]) / 3)
    assert lost[0] == pytest.approx(expected)
    assert marginals(scores, dict.fromkeys(MACHINES, np.eye(4)[1]))[1] is None


def test_pruning_drops_what_nobody_misses(scores):
    weights = np.array([0.3, 0.3, 0.1, 0.3])
    pruned = prune(scores, weights, dict.fromkeys(MACHINES, weights), tolerance=0.5)
    assert "p0" not in pruned.weights
    assert sum(pruned.weights.values()) == pytest.approx(1)
    assert pruned.lomo >= pruned.curve[0][2] - 0.5
    vector = np.array([pruned.weights.get(name, 0) for name in scores.names])
    assert scores.omega(vector) == pytest.approx(pruned.in_sample)
    assert [size for size, _, _ in pruned.curve] == [4, 3, 2, 1]
    assert len(prune(scores, weights, {}, tolerance=100).weights) == 1
