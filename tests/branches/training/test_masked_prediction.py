import pytest
import torch
from torch.nn import functional as F

from branches.spec import MaskedPredictionSpec
from branches.training.masked_prediction import MaskedPrediction


@pytest.fixture
def auxiliary():
    torch.manual_seed(0)
    return MaskedPrediction(MaskedPredictionSpec(), width=6)


def test_whole_patches_are_masked_and_the_rest_is_kept(auxiliary):
    features = torch.randn(9, 70, 128)
    hidden, masked = auxiliary.mask(features)
    wide = masked.reshape(9, 4, 1, 8, 1).expand(9, 4, 16, 8, 16).reshape(9, 64, 128)
    assert torch.equal(hidden[:, :64], features[:, :64] * ~wide)
    assert torch.equal(hidden[:, 64:], features[:, 64:])
    assert masked.float().mean().item() == pytest.approx(0.3, abs=0.06)


def test_what_is_counted_is_predicted_of_tokenizers_that_are_neither_trained_nor_saved(auxiliary):
    patches, labels = torch.randn(2, 32, 6, requires_grad=True), auxiliary.labels(torch.randn(2, 70, 128))
    assert not torch.equal(*labels)
    counted = torch.zeros(2, 32, dtype=torch.bool)
    counted[0, 5] = counted[1, 7] = True
    loss = auxiliary(patches, labels, counted)
    each = [F.cross_entropy(h(patches[counted]), of[counted]) for h, of in zip(auxiliary.heads, labels, strict=True)]
    torch.testing.assert_close(loss, 0.5 * torch.stack(each).mean())
    loss.backward()
    assert torch.equal((patches.grad != 0).any(-1), counted)
    assert auxiliary(patches, labels, torch.zeros_like(counted)).item() == 0.0
    for names in (dict(auxiliary.named_parameters()), auxiliary.state_dict()):
        assert {name.partition(".")[0] for name in names} == {"heads"}
