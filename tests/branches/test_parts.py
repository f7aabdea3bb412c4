"""Pooling, objectives, strategies and augmentation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from branches.augment import spec_augment
from branches.beats import load_beats
from branches.objectives import build_objective
from branches.pooling import POOLINGS
from branches.spec import ArcFaceSpec, AugmentationSpec, FullSpec, PartialSpec, SoftmaxSpec
from branches.strategies import prepare


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", POOLINGS)
def test_padded_patches_have_no_say(name):
    pooling = POOLINGS[name](12)
    patches = torch.randn(2, 32, 12)
    padding = torch.zeros(2, 32, dtype=torch.bool)
    padding[1, 16:] = True
    pooled = pooling(patches, padding)
    assert pooled.shape == (2, pooling.output_dim)
    torch.testing.assert_close(pooled[1:], pooling(patches[1:, :16], None))
    torch.testing.assert_close(pooled[:1], pooling(patches[:1], None))
    noisy = torch.where(padding[..., None], torch.randn(2, 32, 12) * 100, patches)
    torch.testing.assert_close(pooling(noisy, padding), pooled)


def test_attentive_statistics_with_equal_attention_are_mean_and_deviation():
    pooling = POOLINGS["attentive_statistics"](6)
    torch.nn.init.zeros_(pooling.attention[2].weight)
    patches = torch.randn(3, 40, 6)
    expected = torch.cat([patches.mean(1), patches.std(1, correction=0)], dim=1)
    torch.testing.assert_close(pooling(patches, None), expected, atol=1e-5, rtol=1e-4)


def test_attentive_statistics_of_one_value_have_a_gradient():
    patches = torch.ones(1, 8, 4, requires_grad=True)
    POOLINGS["attentive_statistics"](4)(patches, None).sum().backward()
    assert torch.isfinite(patches.grad).all()


def test_band_means_keep_the_bands_apart():
    patches = torch.arange(8.0).repeat(5)[None, :, None].expand(1, 40, 2)
    assert POOLINGS["band_mean"](2)(patches, None)[0].tolist() == [float(b) for b in range(8) for _ in range(2)]


def test_arcface_without_margin_is_softmax_of_scaled_cosines():
    objective = build_objective(ArcFaceSpec(scale=7, margin=0), 5, 4)
    embeddings, labels = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 0, 1])
    cosines = F.normalize(embeddings) @ F.normalize(objective.centres).T
    torch.testing.assert_close(objective(embeddings, labels), F.cross_entropy(7 * cosines, labels))


def test_the_margin_is_put_on_the_true_class_only():
    objective = build_objective(ArcFaceSpec(scale=5, margin=0.3), 2, 2)
    with torch.no_grad():
        objective.centres.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    angle = torch.tensor(0.4)
    embedding = torch.stack([angle.cos(), angle.sin()])[None]
    logits = 5 * torch.stack([(angle + 0.3).cos(), angle.sin()])
    expected = F.cross_entropy(logits[None], torch.tensor([0]))
    torch.testing.assert_close(objective(embedding, torch.tensor([0])), expected)


@given(st.floats(0, math.pi), st.floats(0, 1.4))
@settings(max_examples=100, deadline=None)
def test_a_margin_is_never_a_reward(angle, margin):
    def loss(margin):
        objective = build_objective(ArcFaceSpec(scale=10, margin=margin), 2, 2)
        with torch.no_grad():
            objective.centres.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
            embedding = torch.tensor([[math.cos(angle), math.sin(angle)]])
            return objective(embedding, torch.tensor([0])).item()

    assert loss(margin) >= loss(0) - 1e-4


@pytest.mark.parametrize("spec", [ArcFaceSpec(), SoftmaxSpec()], ids=lambda s: s.name)
def test_objectives_have_finite_gradients_at_the_extremes(spec):
    objective = build_objective(spec, 3, 2)
    centre = torch.tensor([[0.0, 0.0, 1.0]])
    embeddings = torch.cat([centre, -centre, centre * 1e4]).requires_grad_()
    if spec.name == "arcface":
        with torch.no_grad():
            objective.centres.copy_(centre.expand(2, 3))
    objective(embeddings, torch.tensor([0, 0, 1])).backward()
    assert torch.isfinite(embeddings.grad).all()


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_partial_trains_the_top_layers_only():
    model = load_beats("tiny")
    prepare(model, PartialSpec(layers=1))
    assert trainable(model) == {n for n, _ in model.named_parameters() if n.startswith("encoder.layers.1.")}
    prepare(model, PartialSpec(layers=9))
    assert trainable(model) == {n for n, _ in model.named_parameters() if n.startswith("encoder.layers.")}
    prepare(model, PartialSpec(layers=0))
    assert not trainable(model)
    prepare(model, FullSpec())
    assert trainable(model) == {n for n, _ in model.named_parameters()}


@given(st.integers(0, 127), st.booleans())
@settings(max_examples=50, deadline=None)
def test_a_mask_is_one_stretch_no_wider_than_asked(longest, in_time):
    features = torch.ones(4, 20, 128)
    masks = {"time_mask": longest} if in_time else {"frequency_mask": longest}
    masked = spec_augment(features, AugmentationSpec(**masks))
    for clip in masked:
        stretch = (clip == 0).all(dim=1 if in_time else 0)
        assert int(stretch.sum()) <= min(longest, len(stretch))
        assert (stretch.int().diff() == 1).sum() + stretch[0].int() <= 1
        assert int((clip == 0).sum()) == int(stretch.sum()) * (128 if in_time else 20)


def test_masks_reach_their_full_width_and_every_place():
    masked = spec_augment(torch.ones(400, 30, 128), AugmentationSpec(time_mask=10, frequency_mask=0)) == 0
    assert set(masked[:, :, 0].sum(dim=1).tolist()) == set(range(11))
    assert masked[:, :, 0].any(dim=0).all()
