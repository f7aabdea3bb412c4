import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.hierarchy import averaging, by_subsystem, choose_weights, factors, parts_of, product, tables_of
from fusion.methods import best_single
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
    over, inside = random.dirichlet(np.ones(len(shape))), [random.dirichlet(np.ones(len(c))) for c in shape]
    weights = product(over, inside)
    again = factors(weights, parts)
    assert again[0] == pytest.approx(over)
    assert np.concatenate(again[1]) == pytest.approx(np.concatenate(inside))
    per_table = dict(zip(tables_of(tree), weights @ averaging(tree, tables_of(tree)), strict=True))
    for i, (subsystem, configurations) in enumerate(by_subsystem(tree, weights).items()):
        for j, (name, weight) in enumerate(configurations.items()):
            assert weight == pytest.approx(over[i] * inside[i][j])
            seeds = tree[subsystem][name]
            assert [per_table[seed] for seed in seeds] == pytest.approx([weight / len(seeds)] * len(seeds))


def test_weights_are_chosen_inside_sub_systems_and_over_what_comes_out_of_them():
    """A sub-system without weight has equal ones inside."""
    parts, scores = parts_of(TREE), labelled(make_pool(per_cell=10)).part(slice(1, 4))
    chosen = choose_weights(scores, parts, rng(), best_single)
    assert chosen.tolist() == [1, 0, 0]
    assert factors(np.array([0, 0, 1.0]), parts)[1][0].tolist() == [0.5, 0.5]


def test_a_table_that_stands_twice_gets_both_weights():
    tree = {"a": {"x": ["t"]}, "b": {"y": ["t", "t", "u"], "z": ["u"]}}
    assert tables_of(tree) == ["t", "u"]
    assert np.array([0.5, 0.3, 0.2]) @ averaging(tree, ["t", "u"]) == pytest.approx([0.7, 0.3])


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "at least one sub-system"),
        ({"a": {"x": ["t"]}, "b": {}}, "each sub-system a configuration"),
        ({"a": {"x": []}}, "configuration x of sub-system a has no seeds"),
    ],
)
def test_what_is_empty_is_named(tree, message):
    with pytest.raises(InputError, match=message):
        tables_of(tree)
