import math
from typing import get_args

import pytest
import torch
from torch.nn import functional as F

from branches import spec as specs
from branches.training.masked_prediction import MaskedPrediction
from branches.training.objectives import build_objective

SPECS = [cls() for cls in get_args(get_args(specs.ObjectiveSpec)[0])]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_classes_are_learnt_and_gradients_are_finite_at_the_extremes(spec):
    points, labels = torch.nn.Parameter(torch.randn(48, 8)), torch.arange(48) % 6
    objective, curve = build_objective(spec, 8, 6), []
    optimizer = torch.optim.Adam([points, *objective.parameters()], 0.05)
    for _ in range(40):
        objective.adapt(points.detach(), labels, labels)
        curve.append(objective(points, labels).mean())
        optimizer.zero_grad()
        curve[-1].backward()
        optimizer.step()
    assert curve[-1] < 0.3 * curve[0]
    centre = torch.eye(8)[:1]
    extremes = torch.cat([centre, -centre, centre * 1e4]).requires_grad_()
    if not isinstance(spec, specs.SoftmaxSpec):
        objective.centres.data.copy_(centre.expand_as(objective.centres))
    objective(extremes, torch.tensor([0, 0, 1])).sum().backward()
    assert torch.isfinite(extremes.grad).all()


@pytest.mark.parametrize(
    ("spec", "centres"),
    [
        (specs.ArcFaceSpec(scale=7, margin=0), [1, 1, 1, 1]),
        (specs.ArcFaceSpec(scale=7, margin=1.2), [1, 1, 1, 1]),
        (specs.SubcenterArcFaceSpec(scale=7, margin=0.3, centres=3, of="all"), [3, 3, 3, 3]),
        (specs.SubcenterArcFaceSpec(scale=7, margin=0.3, centres=3, of="unattributed"), [1, 3, 1, 3]),
    ],
)
def test_arcface_enlarges_the_angle_to_the_nearest_counting_centre_of_the_true_class(spec, centres):
    """To π at most: past it the cosine would rise again, and the margin be a reward."""
    objective = build_objective(spec, 2, 4, torch.tensor([False, True] * 2))
    embeddings, labels = torch.randn(99, 2), torch.arange(99) % 4
    cosines = (F.normalize(embeddings) @ F.normalize(objective.centres).T).reshape(99, 4, -1)
    cosine = torch.stack([cosines[:, label, :n].amax(1) for label, n in enumerate(centres)], 1)
    enlarged = torch.cos((torch.acos(cosine) + spec.margin).clamp(max=math.pi))
    logits = 7 * torch.where(F.one_hot(labels, 4).bool(), enlarged, cosine)
    entropy = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(objective(embeddings, labels), entropy, atol=1e-3, rtol=0)


@pytest.mark.parametrize("clusters", [1, 2])
def test_the_scale_of_adacos_starts_and_moves_as_published(clusters):
    """And neither class of a mixture is a wrong one: two labels must not drive each other's scale."""
    objective, start = (
        build_objective(specs.SubclusterAdaCosSpec(clusters=clusters), 8, 5),
        2**0.5 * math.log(5 * clusters - 1),
    )
    embeddings, labels, others = torch.randn(32, 8), torch.randint(5, (32,)), torch.randint(5, (32,))
    cosine = (F.normalize(embeddings) @ F.normalize(objective.centres).T).reshape(32, 5, clusters)
    probability = (start * cosine).flatten(1).softmax(1).reshape(32, 5, clusters).sum(2)
    torch.testing.assert_close(objective(embeddings, labels), -probability[torch.arange(32), labels].log())
    own = F.one_hot(labels, 5).bool() | F.one_hot(others, 5).bool()
    b = (start * cosine).exp().sum(2).masked_fill(own, 0).sum(1).mean()
    theta = torch.acos(cosine.amax(2).gather(1, labels[:, None])).median().clamp(max=math.pi / 4)
    objective.adapt(embeddings, labels, others)
    assert objective.scale.item() == pytest.approx((b.log() / theta.cos()).item(), rel=1e-5)


def test_the_scale_of_adacos_stays_within_its_bounds():
    objective = build_objective(specs.SubclusterAdaCosSpec(clusters=1), 2, 2)
    objective.centres.data.copy_(torch.eye(2))
    for label, bound in ((0, 1.0), (1, 100.0)):
        for _ in range(60):
            objective.adapt(torch.eye(2)[:1], torch.tensor([label]), torch.tensor([label]))
        assert objective.scale.item() == bound


def test_whole_patches_are_masked_and_predicted_of_tokenizers_that_are_neither_trained_nor_saved():
    auxiliary, features = MaskedPrediction(specs.MaskedPredictionSpec(), width=6), torch.randn(9, 70, 128)
    hidden, masked = auxiliary.mask(features)
    wide = masked.reshape(9, 4, 1, 8, 1).expand(9, 4, 16, 8, 16).reshape(9, 64, 128)
    assert torch.equal(hidden, torch.cat([features[:, :64] * ~wide, features[:, 64:]], dim=1))
    assert masked.float().mean().item() == pytest.approx(0.3, abs=0.06)
    patches, labels = torch.randn(9, 32, 6, requires_grad=True), auxiliary.labels(features)
    assert not torch.equal(*labels)
    loss = auxiliary(patches, labels, masked)
    each = [F.cross_entropy(h(patches[masked]), of[masked]) for h, of in zip(auxiliary.heads, labels, strict=True)]
    torch.testing.assert_close(loss, 0.5 * torch.stack(each).mean())
    loss.backward()
    assert torch.equal((patches.grad != 0).any(-1), masked)
    assert auxiliary(patches, labels, torch.zeros_like(masked)).item() == 0.0
    for names in (dict(auxiliary.named_parameters()), auxiliary.state_dict()):
        assert {name.partition(".")[0] for name in names} == {"heads"}
