import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from branches.spec import ArcFaceSpec, ObjectiveSpec, SoftmaxSpec, SubcenterArcFaceSpec, SubclusterAdaCosSpec
from branches.training.objectives import build_objective

SPECS = [cls() for cls in get_args(get_args(ObjectiveSpec)[0])]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def losses(spec, centres, angle, unattributed=None):
    """Of a clip at this angle, for either of two classes with these centres."""
    objective = build_objective(spec, 2, 2, unattributed)
    objective.centres.data.copy_(torch.tensor(centres))
    clips = torch.tensor([[math.cos(angle), math.sin(angle)]] * 2)
    return objective(clips, torch.tensor([0, 1])).tolist()


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_classes_are_learnt_and_gradients_are_finite_at_the_extremes(spec):
    points, labels, objective = (
        torch.nn.Parameter(torch.randn(48, 8)),
        torch.arange(48) % 6,
        build_objective(spec, 8, 6),
    )
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


def test_softmax_and_arcface_without_margin_are_cross_entropy():
    embeddings, labels = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 0, 1])
    softmax, arcface = build_objective(SoftmaxSpec(), 5, 4), build_objective(ArcFaceSpec(scale=7, margin=0), 5, 4)
    logits = 7 * F.normalize(embeddings) @ F.normalize(arcface.centres).T
    for objective, expected in ((softmax, softmax.classifier(embeddings)), (arcface, logits)):
        entropy = F.cross_entropy(expected, labels, reduction="none")
        torch.testing.assert_close(objective(embeddings, labels), entropy)


def test_the_margin_is_put_on_the_true_class_only():
    own, other = math.exp(5 * math.cos(0.4 + 0.3)), math.exp(5 * math.sin(0.4))
    made = losses(ArcFaceSpec(scale=5, margin=0.3), [[1.0, 0.0], [0.0, 1.0]], 0.4)
    assert made[0] == pytest.approx(-math.log(own / (own + other)), rel=1e-5)


@given(st.floats(0, math.pi), st.floats(0, 1.4))
@settings(max_examples=50, deadline=None)
def test_a_margin_is_never_a_reward(angle, margin):
    made, without = (losses(ArcFaceSpec(scale=10, margin=m), [[1.0, 0.0], [0.0, -1.0]], angle) for m in (margin, 0))
    assert made[0] >= without[0] - 1e-4


@pytest.mark.parametrize(
    ("of", "angle", "counting"),
    [
        ("all", 0.3, [[1.0, 0.0], [0.0, 1.0]]),
        ("all", 3.6, [[-1.0, 0.0], [0.0, -1.0]]),
        # Of the class with attributes the first centre counts even where the second is nearer.
        ("unattributed", 3.6, [[1.0, 0.0], [0.0, -1.0]]),
    ],
)
def test_of_several_centres_of_a_class_the_nearest_counts(of, angle, counting):
    centres = [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]
    spec = SubcenterArcFaceSpec(scale=5, margin=0.3, centres=2, of=of)
    made = losses(spec, centres, angle, torch.tensor([False, True]))
    assert made == pytest.approx(losses(ArcFaceSpec(scale=5, margin=0.3), counting, angle))


@pytest.mark.parametrize("clusters", [1, 2])
def test_the_scale_of_adacos_starts_and_moves_as_published(clusters):
    """And neither class of a mixture is a wrong one: two labels must not drive each other's scale."""
    objective, start = (
        build_objective(SubclusterAdaCosSpec(clusters=clusters), 8, 5),
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
    objective = build_objective(SubclusterAdaCosSpec(clusters=1), 2, 2)
    objective.centres.data.copy_(torch.eye(2))
    for label, bound in ((0, 1.0), (1, 100.0)):
        for _ in range(60):
            objective.adapt(torch.eye(2)[[0] * 9], torch.tensor([label] * 9), torch.tensor([label] * 9))
        assert objective.scale.item() == bound
