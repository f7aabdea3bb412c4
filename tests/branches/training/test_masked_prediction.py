import pytest
import torch

from branches.spec import MaskedPredictionSpec
from branches.training.masked_prediction import WEIGHT, MaskedPrediction


@pytest.fixture
def auxiliary():
    torch.manual_seed(0)
    return MaskedPrediction(MaskedPredictionSpec(), width=6)


def test_whole_patches_are_masked_and_the_rest_is_kept(auxiliary):
    features = torch.randn(3, 70, 128)
    hidden, masked = auxiliary.mask(features)
    assert masked.shape == (3, 4 * 8)
    for clip in range(3):
        for patch in range(32):
            t, k = divmod(patch, 8)
            block = hidden[clip, t * 16 : t * 16 + 16, k * 16 : k * 16 + 16]
            original = features[clip, t * 16 : t * 16 + 16, k * 16 : k * 16 + 16]
            assert torch.equal(block, torch.zeros_like(block) if masked[clip, patch] else original)
    assert torch.equal(hidden[:, 64:], features[:, 64:])
    assert 0.15 < masked.float().mean() < 0.45


def test_two_tokenizers_give_two_labels_of_each_patch(auxiliary):
    first, second = auxiliary.labels(torch.randn(2, 70, 128))
    assert first.shape == second.shape == (2, 32)
    assert not torch.equal(first, second)


def test_only_what_is_counted_is_predicted(auxiliary):
    patches = torch.randn(2, 32, 6, requires_grad=True)
    labels = auxiliary.labels(torch.randn(2, 70, 128))
    counted = torch.zeros(2, 32, dtype=torch.bool)
    counted[0, 5] = True
    loss = auxiliary(patches, labels, counted)
    expected = [
        torch.nn.functional.cross_entropy(head(patches[0, 5])[None], label[0, 5][None])
        for head, label in zip(auxiliary.heads, labels, strict=True)
    ]
    torch.testing.assert_close(loss, WEIGHT * torch.stack(expected).mean())
    loss.backward()
    assert torch.equal((patches.grad != 0).any(-1), counted)
    nothing = auxiliary(patches, labels, torch.zeros_like(counted))
    assert nothing.item() == 0.0


def test_tokenizers_are_neither_trained_nor_saved(auxiliary):
    assert {name.partition(".")[0] for name, _ in auxiliary.named_parameters()} == {"heads"}
    assert {name.partition(".")[0] for name in auxiliary.state_dict()} == {"heads"}
