"""Weights that are chosen by given labels: what every method promises, the tree they are chosen in, and Omega."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from fusion import hierarchy
from fusion.methods import METHODS, OPEN, best_single, greedy, softmax, to_point, to_weights, tpe
from fusion.omega import Omega
from scoring.errors import InputError
from scoring.metrics import LabelledCells
from tests.fusion.pools import TREE, labelled, make_pool, rng
from tests.tables import make_table

SCORES = labelled(make_pool())


@pytest.mark.parametrize("method", METHODS)
def test_weights_are_on_the_simplex_depend_on_the_seed_alone_and_beat_every_member_where_searched(method):
    """The strongest regularisation, which is nearest to uniform weights, comes first: of equals it is taken."""
    configurations, parts, uniform = (
        hierarchy.configurations_of(SCORES, TREE),
        hierarchy.parts_of(TREE),
        [0.25, 0.25, 0.5],
    )
    found, again = (METHODS[method].search(configurations, parts, rng(3)) for _ in range(2))
    for strength, weights in found.items():
        assert weights.sum() == pytest.approx(1)
        assert weights.min() >= 0
        assert np.array_equal(weights, again[strength])
    distances = [np.abs(weights - uniform).sum() for weights in found.values()]
    assert distances == sorted(distances)
    if method in ("greedy", "tpe", "evolution"):
        free = found["shrinkage 0.0"]
        assert configurations.omega(free) > configurations.omega(np.eye(3)).max()
        assert free[1] < 0.15  # knows nothing
        assert found["shrinkage 0.75"] == pytest.approx(0.25 * free + 0.75 * np.array(uniform))


def test_softmax_goes_from_the_best_to_uniform():
    omega = SCORES.omega(np.eye(4))
    assert best_single(SCORES, rng()).tolist() == (omega == omega.max()).tolist()
    assert softmax(SCORES, rng(), 1e-3) == pytest.approx(best_single(SCORES, rng()))
    assert softmax(SCORES, rng(), 2) == pytest.approx(np.exp(omega / 2) / np.exp(omega / 2).sum())


def test_greedy_is_the_best_round_of_adding_who_helps_most():
    """With members that know nothing, whose best round is seldom the last."""
    for seed in range(4):
        noise, chosen, rounds = SCORES.with_values(rng(seed).normal(size=(5, SCORES.values.shape[1]))), [], []
        for _ in range(20):
            tried = [np.bincount([*chosen, member], minlength=5) for member in range(5)]
            omega = [float(noise.omega(counts / counts.sum())) for counts in tried]
            chosen.append(int(np.argmax(omega)))
            rounds.append(max(omega))
        assert noise.omega(greedy(noise, rng())) == pytest.approx(max(rounds))


def test_tpe_is_never_below_its_starts_and_improves_a_poor_one(monkeypatch):
    assert SCORES.omega(tpe(SCORES, rng())) >= SCORES.omega(greedy(SCORES, rng()))
    poor = np.array([0.0, 0.0, 1.0, 0.0])
    monkeypatch.setattr("fusion.methods.STARTS", (lambda scores, rng: poor,))
    assert SCORES.omega(tpe(SCORES, rng())) > SCORES.omega(poor) + 5


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_every_point_is_on_the_simplex_and_comes_back(point):
    weights = to_weights(np.array(point))
    assert weights.min() >= 0
    assert np.isclose(weights.sum(), 1)
    again = to_point(weights)
    assert 0 <= again.min() <= again.max() <= 1
    np.testing.assert_allclose(to_weights(again), weights, atol=1e-9)


def test_open_members_are_uniform_on_their_simplex():
    """Of Dirichlet(1) with three members each weight is Beta(1, 2), whatever gates are."""
    points = rng().random((20_000, 3))
    weights, all_open = to_weights(points), (points < OPEN).all(axis=1)
    assert np.isclose(all_open.mean(), OPEN**3, atol=0.01)
    assert kstest(weights[all_open, 0], "beta", (1, 2)).pvalue > 0.01
    assert (weights[:, 0] == 0).mean() > 0.2


def test_weights_are_chosen_on_two_levels_that_multiply_and_come_apart_again():
    """A sub-system without weight has equal ones inside, and a table that stands twice gets both weights."""
    chosen = hierarchy.choose_weights(SCORES.part(slice(1, 4)), hierarchy.parts_of(TREE), rng(), best_single)
    assert chosen.tolist() == [1, 0, 0]
    tree = {"a": {"x": ["t", "u"], "y": ["v"]}, "b": {"z": ["v", "v", "w"]}}
    over, inside, parts = np.array([0.7, 0.3]), [np.array([0.6, 0.4]), np.ones(1)], hierarchy.parts_of(tree)
    weights = hierarchy.product(over, inside)
    assert weights == pytest.approx([0.42, 0.28, 0.3])
    for some, expected in ((weights, (over, inside)), (0 * weights, (0 * over, [np.full(2, 0.5), np.ones(1)]))):
        found = hierarchy.factors(some, parts)
        assert np.concatenate([found[0], *found[1]]) == pytest.approx(np.concatenate([expected[0], *expected[1]]))
    assert hierarchy.by_subsystem(tree, weights) == {"a": {"x": weights[0], "y": weights[1]}, "b": {"z": weights[2]}}
    assert hierarchy.tables_of(tree) == ["t", "u", "v", "w"]
    assert weights @ hierarchy.averaging(tree, "tuvw") == pytest.approx([0.21, 0.21, 0.48, 0.1])
    for tree in ({}, {"a": {"x": ["t"]}, "b": {}}):
        with pytest.raises(InputError, match="at least one sub-system, and each sub-system a configuration"):
            hierarchy.tables_of(tree)
    with pytest.raises(InputError, match="configuration x of sub-system a has no seeds"):
        hierarchy.tables_of({"a": {"x": []}})


@given(
    st.integers(1, 9),
    st.sampled_from([["source", "target"], ["source"], ["target", None]]),
    st.integers(0, 3),
    st.sampled_from([1, 100, 20_000]),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None)
def test_the_official_metrics_come_out(per_cell, domains, tied, block, seed):
    """Of any number of clips, so that the limit of pAUC falls between normals; with ties; in blocks of any size."""
    random, table = rng(seed), make_table(("fan", "pump"), per_cell, 2)
    domain = np.where(
        table["machine"].to_numpy() == "fan", random.choice(domains, len(table)), table["domain"].to_numpy()
    )
    table = table.set_column(4, "domain", pa.array(domain, pa.string()))
    table = table.filter(pa.array(random.random(len(table)) < (0.9 if per_cell > 3 else 1)))
    cells, values = LabelledCells.from_table(table), random.normal(size=(3, len(table)))
    values[:tied] = values[:tied].round()
    weights = np.concatenate([random.dirichlet(np.ones(3), size=(2, 3)), np.eye(3)[None].repeat(2, 0)], axis=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fusion.omega.BLOCK", block)
        patch.setattr("fusion.omega.SUMMED", 3 * block)
        ours = Omega(values, cells).cells(weights)
    assert ours.shape == (2, 6, 3, len(cells.machines))
    np.testing.assert_allclose(ours, cells.values(weights @ values))
