import math
from typing import get_args

import pytest
import torch
from torch.nn import functional as F

from branches.spec import ArcFaceSpec, ObjectiveSpec, SoftmaxSpec, SubcenterArcFaceSpec, SubclusterAdaCosSpec
from branches.training.objectives import build_objective

SPECS = [cls() for cls in get_args(get_args(ObjectiveSpec)[0])]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def cosines(embeddings, objective, classes):
    return (F.normalize(embeddings) @ F.normalize(objective.centres).T).reshape(len(embeddings), classes, -1)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_classes_are_learnt_and_gradients_are_finite_at_the_extremes(spec):
    points, labels = torch.nn.Parameter(torch.randn(48, 8)), torch.arange(48) % 6
    objective = build_objective(spec, 8, 6)
    optimizer, curve = torch.optim.Adam([points, *objective.parameters()], 0.05), []
    for _ in range(40):
        objective.adapt(points.detach(), labels, labels)
        curve.append(objective(points, labels).mean())
        optimizer.zero_grad()
        curve[-1].backward()
        optimizer.step()
    assert curve[-1] < 0.3 * curve[0]
    centre = torch.eye(8)[:1]
    extremes = torch.cat([centre, -centre, centre * 1e4]).requires_grad_()
    if not isinstance(spec, SoftmaxSpec):
        objective.centres.data.copy_(centre.expand_as(objective.centres))
    objective(extremes, torch.tensor([0, 0, 1])).sum().backward()
    assert torch.isfinite(extremes.grad).all()


@pytest.mark.parametrize(
    "spec",
    [
        ArcFaceSpec(scale=7, margin=0),
        ArcFaceSpec(scale=7, margin=1.4),
        SubcenterArcFaceSpec(scale=7, margin=0.3, centres=3),
        SubcenterArcFaceSpec(scale=7, margin=0.3, centres=3, of="unattributed"),
    ],
    ids=repr,
)
def test_arcface_puts_its_margin_on_the_angle_to_the_nearest_centre_of_the_true_class(spec):
    """Past π, where the cosine would rise again, a margin is no reward; classes with attributes may have one centre."""
    unattributed = torch.arange(4) % 2 == 1
    objective, embeddings, labels = build_objective(spec, 3, 4, unattributed), torch.randn(40, 3), torch.arange(40) % 4
    cosine = cosines(embeddings, objective, 4)
    nearest, first = cosine.amax(2), cosine[:, :, 0]
    nearest = torch.where(unattributed, nearest, first) if getattr(spec, "of", "all") == "unattributed" else nearest
    angle, true = torch.acos(nearest), F.one_hot(labels, 4).bool()
    logits = spec.scale * torch.cos((angle + spec.margin * true).clamp(max=math.pi))
    torch.testing.assert_close(objective(embeddings, labels), F.cross_entropy(logits, labels, reduction="none"))


@pytest.mark.parametrize("clusters", [1, 2])
def test_the_scale_of_adacos_starts_and_moves_as_published(clusters):
    """And neither class of a mixture is a wrong one: two labels must not drive each other's scale."""
    objective, start = (
        build_objective(SubclusterAdaCosSpec(clusters=clusters), 8, 5),
        2**0.5 * math.log(5 * clusters - 1),
    )
    embeddings, labels, others = torch.randn(32, 8), torch.randint(5, (32,)), torch.randint(5, (32,))
    cosine = cosines(embeddings, objective, 5)
    probability = (start * cosine).flatten(1).softmax(1).reshape(32, 5, clusters).sum(2)
    torch.testing.assert_close(objective(embeddings, labels), -probability[torch.arange(32), labels].log())
    own = F.one_hot(labels, 5).bool() | F.one_hot(others, 5).bool()
    b = (start * cosine).exp().sum(2).masked_fill(own, 0).sum(1).mean()
    theta = torch.acos(cosine.amax(2).gather(1, labels[:, None])).median().clamp(max=math.pi / 4)
    objective.adapt(embeddings, labels, others)
    assert objective.scale.item() == pytest.approx((b.log() / theta.cos()).item(), rel=1e-5)


def test_the_scale_of_adacos_stays_within_its_bounds():
    objective = build_objective(SubclusterAdaCosSpec(clusters=1), 2, 2)
    objective.centres.data.copy_(torch.eye(2))
    for label, bound in ((0, 1.0), (1, 100.0)):
        for _ in range(60):
            objective.adapt(torch.eye(2)[[0] * 9], torch.tensor([label] * 9), torch.tensor([label] * 9))
        assert objective.scale.item() == bound
