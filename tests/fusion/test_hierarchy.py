import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.hierarchy import (
    averaging,
    by_subsystem,
    choose_weights,
    configurations_of,
    factors,
    parts_of,
    product,
    tables_of,
    uniform_weights,
)
from fusion.methods import uniform
from scoring.errors import InputError
from tests.fusion.pools import TREE, labelled, make_pool, rng


@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=4), min_size=1, max_size=4), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_levels_multiply_and_come_apart_again(shape, seed):
    tree = {
        f"s{i}": {f"c{j}": [f"{i}.{j}.{k}" for k in range(n)] for j, n in enumerate(configurations)}
        for i, configurations in enumerate(shape)
    }
    parts, random = parts_of(tree), rng(seed)
    over = random.dirichlet(np.ones(len(shape)))
    inside = [random.dirichlet(np.ones(len(c))) for c in shape]
    weights = product(over, inside)
    assert weights.sum() == pytest.approx(1)
    again = factors(weights, parts)
    assert again[0] == pytest.approx(over)
    assert np.concatenate(again[1]) == pytest.approx(np.concatenate(inside))
    per_table = dict(zip(tables_of(tree), weights @ averaging(tree, tables_of(tree)), strict=True))
    assert sum(per_table.values()) == pytest.approx(1)
    for subsystem, configurations in by_subsystem(tree, weights).items():
        for name, weight in configurations.items():
            seeds = tree[subsystem][name]
            assert [per_table[s] for s in seeds] == pytest.approx([weight / len(seeds)] * len(seeds))


def test_uniform_needs_no_labels():
    configurations = configurations_of(labelled(make_pool(per_cell=4)), TREE)
    chosen = choose_weights(configurations, parts_of(TREE), rng(), uniform)
    assert uniform_weights(parts_of(TREE)) == pytest.approx(chosen)
    assert chosen == pytest.approx([0.25, 0.25, 0.5])


def test_seeds_are_averaged():
    scores = labelled(make_pool(per_cell=4))
    configurations = configurations_of(scores, TREE)
    assert configurations.names == ("a/good", "a/poor", "b/other")
    assert configurations.values[0] == pytest.approx(scores.values[:2].mean(axis=0))


def test_a_table_that_stands_twice_gets_both_weights():
    tree = {"a": {"x": ["t"]}, "b": {"y": ["t"], "z": ["u"]}}
    weights = np.array([0.5, 0.2, 0.3]) @ averaging(tree, tables_of(tree))
    assert weights == pytest.approx([0.7, 0.3])


def test_what_is_empty_is_named():
    with pytest.raises(InputError, match="at least one sub-system"):
        tables_of({})
    with pytest.raises(InputError, match="configuration x of sub-system a has no seeds"):
        tables_of({"a": {"x": []}})
