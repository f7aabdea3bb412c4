import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from branches.spec import ArcFaceSpec, ObjectiveSpec, SubcenterArcFaceSpec, SubclusterAdaCosSpec
from branches.training.objectives import build_objective


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def unit(angle):
    return torch.tensor([[math.cos(angle), math.sin(angle)]])


def test_arcface_without_margin_is_softmax_of_scaled_cosines():
    objective = build_objective(ArcFaceSpec(scale=7, margin=0), 5, 4)
    embeddings, labels = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 0, 1])
    cosines = F.normalize(embeddings) @ F.normalize(objective.centres).T
    torch.testing.assert_close(objective(embeddings, labels), F.cross_entropy(7 * cosines, labels, reduction="none"))


def test_the_margin_is_put_on_the_true_class_only():
    objective = build_objective(ArcFaceSpec(scale=5, margin=0.3), 2, 2)
    with torch.no_grad():
        objective.centres.copy_(torch.eye(2))
    logits = 5 * torch.tensor([[math.cos(0.4 + 0.3), math.sin(0.4)]])
    expected = F.cross_entropy(logits, torch.tensor([0]), reduction="none")
    torch.testing.assert_close(objective(unit(0.4), torch.tensor([0])), expected)


@given(st.floats(0, math.pi), st.floats(0, 1.4))
@settings(max_examples=100, deadline=None)
def test_a_margin_is_never_a_reward(angle, margin):
    def loss(margin):
        objective = build_objective(ArcFaceSpec(scale=10, margin=margin), 2, 2)
        with torch.no_grad():
            objective.centres.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
            return objective(unit(angle), torch.tensor([0])).item()

    assert loss(margin) >= loss(0) - 1e-4


def test_of_several_centres_the_nearest_counts():
    several = build_objective(SubcenterArcFaceSpec(scale=5, margin=0.3, centres=2), 2, 2)
    one = build_objective(ArcFaceSpec(scale=5, margin=0.3), 2, 2)
    with torch.no_grad():
        several.centres.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
        for angle, centres in [(0.3, [[1.0, 0.0], [0.0, 1.0]]), (3.6, [[-1.0, 0.0], [0.0, -1.0]])]:
            one.centres.copy_(torch.tensor(centres))
            for label in (0, 1):
                labels = torch.tensor([label])
                torch.testing.assert_close(several(unit(angle), labels), one(unit(angle), labels))


def test_only_classes_without_attributes_have_several_centres():
    spec = SubcenterArcFaceSpec(scale=5, margin=0.3, centres=2, of="unattributed")
    mixed = build_objective(spec, 2, 2, torch.tensor([False, True]))
    one = build_objective(ArcFaceSpec(scale=5, margin=0.3), 2, 2)
    with torch.no_grad():
        mixed.centres.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
        # Of the first class the first centre counts even where the second is nearer.
        one.centres.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
        for label in (0, 1):
            labels = torch.tensor([label])
            torch.testing.assert_close(mixed(unit(3.6), labels), one(unit(3.6), labels))


def test_the_scale_of_adacos_starts_and_moves_as_published():
    objective = build_objective(SubclusterAdaCosSpec(clusters=1), 8, 10)
    assert objective.scale.item() == pytest.approx(math.sqrt(2) * math.log(9))
    embeddings, labels = torch.randn(32, 8), torch.randint(10, (32,))
    cosine = F.normalize(embeddings) @ F.normalize(objective.centres).T
    true = F.one_hot(labels, 10).bool()
    b = (objective.scale * cosine).exp().masked_fill(true, 0).sum(1).mean()
    theta = torch.acos(cosine[true]).median().clamp(max=math.pi / 4)
    objective(embeddings, labels)
    assert objective.scale.item() == pytest.approx(math.sqrt(2) * math.log(9))
    objective.adapt(embeddings, labels, labels)
    assert objective.scale.item() == pytest.approx((b.log() / theta.cos()).item(), rel=1e-5)


def test_neither_class_of_a_mixture_is_a_wrong_one():
    objective = build_objective(SubclusterAdaCosSpec(clusters=2), 8, 5)
    embeddings, labels, others = torch.randn(32, 8), torch.randint(5, (32,)), torch.randint(5, (32,))
    cosine = (F.normalize(embeddings) @ F.normalize(objective.centres).T).reshape(32, 5, 2)
    own = F.one_hot(labels, 5).bool() | F.one_hot(others, 5).bool()
    b = (objective.scale * cosine).exp().sum(2).masked_fill(own, 0).sum(1).mean()
    theta = torch.acos(cosine.amax(2).gather(1, labels[:, None])).median().clamp(max=math.pi / 4)
    objective.adapt(embeddings, labels, others)
    assert objective.scale.item() == pytest.approx((b.log() / theta.cos()).item(), rel=1e-5)


def test_a_class_has_the_probability_of_its_clusters_together():
    objective = build_objective(SubclusterAdaCosSpec(clusters=3), 5, 4).eval()
    embeddings, labels = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 0, 1])
    cosine = F.normalize(embeddings) @ F.normalize(objective.centres).T
    probability = (objective.scale * cosine).softmax(1).reshape(6, 4, 3).sum(2)
    torch.testing.assert_close(objective(embeddings, labels), -probability[torch.arange(6), labels].log())


@pytest.mark.parametrize("spec", [cls() for cls in get_args(get_args(ObjectiveSpec)[0])], ids=lambda s: s.name)
def test_objectives_have_finite_gradients_at_the_extremes(spec):
    objective = build_objective(spec, 3, 2)
    centre = torch.tensor([[0.0, 0.0, 1.0]])
    embeddings = torch.cat([centre, -centre, centre * 1e4]).requires_grad_()
    if hasattr(objective, "centres"):
        with torch.no_grad():
            objective.centres.copy_(centre.expand_as(objective.centres))
    losses = objective(embeddings, torch.tensor([0, 0, 1]))
    assert losses.shape == (3,)
    losses.sum().backward()
    assert torch.isfinite(embeddings.grad).all()
