import pytest
import torch

from branches.pooling import Pooling
from branches.spec import BranchSpec

NAMES = ["mean", "attentive_statistics", "band_mean", "band_statistics", "relative_deviation"]


def pooling(name, dim, **settings):
    torch.manual_seed(0)
    return Pooling(BranchSpec.model_validate({"pooling": {"name": name, **settings}}).pooling, dim)


@pytest.mark.parametrize("name", NAMES)
def test_padded_patches_have_no_say_and_one_value_everywhere_has_a_gradient(name):
    pool = pooling(name, 12)
    patches, padding = torch.randn(2, 64, 12), torch.zeros(2, 64, dtype=torch.bool)
    padding[1, 32:] = True
    patches[1, 32:] *= 100
    pooled = pool(patches, padding)
    assert pooled.shape == ((2, 8, pool.output_dim) if pool.bands == 8 else (2, pool.output_dim))
    torch.testing.assert_close(pooled[1:], pool(patches[1:, :32], None))
    torch.testing.assert_close(pooled[:1], pool(patches[:1], None))
    for value in (0.0, 1.0):
        patches = torch.full((1, 16, 12), value, requires_grad=True)
        pool(patches, None).sum().backward()
        assert torch.isfinite(patches.grad).all()


def mean_and_deviation(vectors, weights):
    """Of vectors (B, n, …, D) with weights (B, n, …, 1), over n."""
    mean = (weights * vectors).sum(1) / weights.sum(1)
    return mean, ((weights * (vectors - mean[:, None]) ** 2).sum(1) / weights.sum(1)).sqrt()


@pytest.mark.parametrize("gamma", [0, 4])
def test_poolings_follow_their_formulas(gamma):
    patches = torch.randn(3, 40, 5)
    moments, equal = patches.reshape(3, 5, 8, 5), torch.ones(3, 5, 8, 1)
    distance = (moments - moments.mean(1, keepdim=True)).norm(dim=-1, keepdim=True)
    departing = (1 + distance / distance.amax(1, keepdim=True)) ** gamma
    attention = pooling("attentive_statistics", 5).attention(patches).softmax(1)
    expected = {
        "mean": patches.mean(1),
        "attentive_statistics": torch.cat(mean_and_deviation(patches, attention), -1),
        "band_mean": moments.mean(1),
        "band_statistics": torch.cat(mean_and_deviation(moments, equal), -1),
        "relative_deviation": mean_and_deviation(moments, departing)[0],
    }
    for name in NAMES:
        pool = pooling(name, 5, **({"gamma": gamma} if name == "relative_deviation" else {}))
        torch.testing.assert_close(pool(patches, None), expected[name], atol=1e-4, rtol=1e-4)
