import pytest
import torch

from branches.pooling import Pooling
from branches.spec import BranchSpec


def pooling(name, dim, **settings):
    return Pooling(BranchSpec.model_validate({"pooling": {"name": name, **settings}}).pooling, dim)


NAMES = ["mean", "attentive_statistics", "band_mean", "band_statistics", "relative_deviation"]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", NAMES)
def test_padded_patches_have_no_say(name):
    pool = pooling(name, 12)
    patches = torch.randn(2, 32, 12)
    padding = torch.zeros(2, 32, dtype=torch.bool)
    padding[1, 16:] = True
    pooled = pool(patches, padding)
    assert pooled.shape == ((2, 8, pool.output_dim) if pool.bands == 8 else (2, pool.output_dim))
    torch.testing.assert_close(pooled[1:], pool(patches[1:, :16], None))
    torch.testing.assert_close(pooled[:1], pool(patches[:1], None))
    noisy = torch.where(padding[..., None], torch.randn(2, 32, 12) * 100, patches)
    torch.testing.assert_close(pool(noisy, padding), pooled)


@pytest.mark.parametrize("name", NAMES)
def test_one_value_everywhere_has_a_gradient(name):
    for value in (0.0, 1.0):
        patches = torch.full((1, 16, 4), value, requires_grad=True)
        pooling(name, 4)(patches, None).sum().backward()
        assert torch.isfinite(patches.grad).all()


def test_attentive_statistics_with_equal_attention_are_mean_and_deviation():
    pool = pooling("attentive_statistics", 6)
    torch.nn.init.zeros_(pool.attention[2].weight)
    patches = torch.randn(3, 40, 6)
    expected = torch.cat([patches.mean(1), patches.std(1, correction=0)], dim=1)
    torch.testing.assert_close(pool(patches, None), expected, atol=1e-5, rtol=1e-4)


def test_bands_are_kept_apart():
    patches = torch.arange(8.0).repeat(5)[None, :, None].expand(1, 40, 2)
    expected = torch.arange(8.0)[None, :, None].expand(1, 8, 2)
    for name in ("band_mean", "relative_deviation"):
        torch.testing.assert_close(pooling(name, 2)(patches, None), expected)


def test_band_statistics_are_mean_and_deviation_over_time():
    patches = torch.randn(3, 40, 5)
    moments = patches.reshape(3, 5, 8, 5)
    expected = torch.cat([moments.mean(1), moments.std(1, correction=0)], dim=-1)
    torch.testing.assert_close(pooling("band_statistics", 5)(patches, None), expected, atol=1e-5, rtol=1e-4)


def test_relative_deviation_follows_its_formula():
    patches = torch.randn(3, 40, 5)
    moments = patches.reshape(3, 5, 8, 5)
    distance = (moments - moments.mean(1, keepdim=True)).norm(dim=-1)
    weights = (1 + distance / distance.amax(1, keepdim=True)) ** 4
    expected = (weights[..., None] * moments).sum(1) / weights.sum(1)[..., None]
    torch.testing.assert_close(pooling("relative_deviation", 5, gamma=4)(patches, None), expected)
    plain = pooling("band_mean", 5)(patches, None)
    torch.testing.assert_close(pooling("relative_deviation", 5, gamma=0)(patches, None), plain)
