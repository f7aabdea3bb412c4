"""The built-in systems: what the documentation says of them, and that every kind of branch of theirs can be trained."""

import re
from pathlib import Path

import numpy as np
import pytest

from branches.audio.cache import open_cache
from branches.audio.channels import with_cancellation
from branches.data.dataset import read_index
from branches.frozen import frozen_embeddings
from branches.pooling import Pooling
from branches.spec import AugmentationSpec
from branches.training.finetuning import train
from branches.training.training_set import training_clips
from orchestrator.plan import make_plan
from orchestrator.system import built_in_systems, load_system, load_systems
from scoring.banks import ReferenceBank

PAGE = (Path(__file__).parents[2] / "docs" / "systems.md").read_text()


def configurations(name):
    return [c for configurations in load_system(name).subsystems.values() for c in configurations.values()]


def branches(*names):
    return make_plan(load_systems(names, backbone="tiny"), None).branches


def test_the_page_says_how_many_branches_and_tables_each_system_has():
    told = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \|", PAGE, re.MULTILINE)
    tables = {name: sum(len(c.seeds) for c in configurations(name)) for name in built_in_systems()}
    assert {name: (int(b), int(t)) for name, b, t in told} == {n: (len(branches(n)), tables[n]) for n in tables}


def test_branches_that_systems_share_are_trained_once():
    assert len(branches("s1", "s2")) == len(branches("s2")) == 10
    assert len(branches("s1", "s2", "s3")) < len(branches("s2")) + len(branches("s3"))


def test_the_differences_of_the_report_are_there():
    specs = [branch.spec for branch in branches("s2")]
    assert {spec.objective.name for spec in specs} == {"arcface", "softmax", "subcenter_arcface"}
    assert {spec.strategy.name for spec in specs} == {"full", "partial", "lora"}
    assert {spec.masked_prediction is None for spec in specs} == {True, False}
    assert {branch.scorings[0].detector.name for branch in branches("s1", "s2", "s4")} == {"mahalanobis"}
    heads = [c.branch for c in load_system("s5").subsystems["heads"].values()]
    assert {(head.strategy.name, head.objective.name) for head in heads} == {("head", "arcface")}


def test_generated_clips_of_s4_and_s5_are_one_set():
    fourth, fifth = ([c.branch for c in configurations(name) if not c.branch.is_frozen] for name in ("s4", "s5"))
    (wanted,) = {(b.augmentation.generated, b.channel) for b in fourth}
    assert wanted[0] is not None
    assert {(b.augmentation.generated, b.channel) for b in fifth if b.augmentation.generated} == {wanted}


@pytest.mark.slow
def test_every_kind_of_branch_can_be_trained(dataset, tmp_path):
    """One of each objective, strategy and channel, with and without dual tokenizer."""
    index = read_index(dataset)
    audio = with_cancellation(open_cache(dataset, index, tmp_path / "cache"), tmp_path / "cache")
    kinds = {
        (s.objective.name, s.strategy.name, s.channel, s.masked_prediction is None): branch
        for branch in branches(*built_in_systems())
        for s in [branch.spec]
    }
    for branch in kinds.values():
        inputs = branch.spec.frozen_inputs(branch.embeddings)
        frozen = frozen_embeddings(inputs[0], inputs, audio, tmp_path, "cpu") if inputs else None
        assert frozen is None or len(frozen) == index.num_rows
        if not branch.spec.is_frozen:
            training = {"steps": 1, "batch_size": 4, "crop_seconds": 0.5}
            augmentation = AugmentationSpec.model_validate({**branch.spec.augmentation.model_dump(), "generated": None})
            update = {"training": branch.spec.training.model_copy(update=training), "augmentation": augmentation}
            short = branch.spec.model_copy(update=update)
            train(short, training_clips(audio, index, short, frozen))


def pooled(patches, gamma):
    """Patches (clips, moments, 8, D) → (clips, 8, D), weights ∝ (1 + r)^γ, as published."""
    distance = np.linalg.norm(patches - patches.mean(axis=1, keepdims=True), axis=-1, keepdims=True)
    weights = (1 + distance / distance.max(axis=1, keepdims=True)) ** gamma
    return (weights * patches).sum(axis=1) / weights.sum(axis=1)


def scored(bank, queries):
    """Mean over bands of the smallest cosine distance less the fitted share of the density around the reference."""
    scores = []
    for band in range(8):
        a, q = (x[:, band] / np.linalg.norm(x[:, band], axis=1, keepdims=True) for x in (bank, queries))
        among, to = 1 - a @ a.T, 1 - q @ a.T
        np.fill_diagonal(among, np.inf)
        density = np.sort(among, axis=1)[:, :4].mean(axis=1)
        u, v = among.min(axis=1), density[among.argmin(axis=1)]
        weight = np.cov(u, v, bias=True)[0, 1] / v.var()
        scores.append((to - weight * density).min(axis=1))
    return np.mean(scores, axis=0)


@pytest.mark.parametrize(
    ("step", "gamma"),
    [
        *[("near/band_mean", 0), ("near/deviation", 4), ("near/sharp", 8), ("near/lora", 4)],
        *[("cancelled/deviation", 4), ("cancelled/lora", 4)],
    ],
)
def test_each_step_of_the_ladder_is_the_published_one(step, gamma):
    """Written down once more in plain numpy."""
    import torch

    subsystem, _, name = step.partition("/")
    configuration = load_system("ladder").subsystems[subsystem][name]
    assert configuration.branch.channel == {"near": "near", "cancelled": "cancel"}[subsystem]
    assert f"{configuration.expected:.2f}" in PAGE
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(60, 6, 8, 12)) + rng.normal(size=(1, 1, 8, 12))
    embeddings = Pooling(configuration.embedding.pooling, 12)(torch.from_numpy(patches).flatten(1, 2), None).numpy()
    expected = pooled(patches, gamma)
    np.testing.assert_allclose(embeddings, expected, rtol=1e-9, atol=1e-11)
    domain = np.array(["source"] * 45 + ["target"] * 5, object)
    found = ReferenceBank(configuration.detector, embeddings[:50], domain).scores(embeddings[50:])
    plain = scored(expected[:50], expected[50:])
    slope, offset = np.polyfit(plain, found, 1)  # scores are in standard deviations of those of the normals
    assert slope > 0
    np.testing.assert_allclose(found, slope * plain + offset, atol=1e-6)
