import pytest
import torch

from branches.beats.attention import distance_buckets, gated_attention, relative_bias


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 1e-9], ids=["clip by clip", "all at once"])
def test_attention_and_its_gradients_are_those_of_the_formula(dropout, padded):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 5, 4)] * 3 + [(2, 3, 5, 1), (3, 5, 5)]
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]
    padding = torch.zeros(2, 1, 1, 5, dtype=torch.float64)
    padding[1, ..., 3:] = torch.finfo(torch.float64).min * padded
    q, k, v, gate, position_bias = inputs
    expected = (q @ k.mT / 4**0.5 + gate * position_bias + padding).softmax(-1) @ v
    ours = gated_attention(*inputs, padding if padded else None, dropout)
    torch.testing.assert_close(ours, expected)
    weight = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    gradients = torch.autograd.grad(expected, inputs, weight)
    torch.testing.assert_close(torch.autograd.grad(ours, inputs, weight), gradients)


def test_buckets_of_relative_positions():
    of = dict(zip(range(-100, 101), distance_buckets(101, 32, 64).tolist(), strict=True))
    assert [of[d] for d in (0, -1, -7, 1, 7)] == [0, 1, 7, 17, 23]
    # From 8 on logarithmically: 8 + log(d / 8) / log(64 / 8) · 8.
    assert [of[d] for d in (-8, -11, -16, -32, -63, -64, -100, 16, 100)] == [8, 9, 10, 13, 15, 15, 15, 26, 31]


def test_the_bias_of_two_patches_is_that_of_their_distance():
    table, length = torch.arange(64.0).reshape(32, 2), 12
    bias, buckets = relative_bias(table, length, 64), distance_buckets(length, 32, 64)
    for query in range(length):
        for key in range(length):
            assert torch.equal(bias[:, query, key], table[buckets[key - query + length - 1]])
