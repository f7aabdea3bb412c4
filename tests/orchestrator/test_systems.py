"""The built-in systems: what the documentation says of them, and that every kind of branch of theirs can be trained."""

import re
from pathlib import Path

import pytest

from branches.audio.cache import open_cache
from branches.audio.channels import with_cancellation
from branches.data.dataset import read_index
from branches.frozen import frozen_embeddings
from branches.spec import AugmentationSpec
from branches.training.finetuning import train
from branches.training.training_set import training_clips
from orchestrator.plan import make_plan
from orchestrator.system import built_in_systems, load_system, load_systems
from scoring.detectors import BandKnnSpec

FITTED = {"name": "difference", "weight": "fitted"}
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


def test_each_step_of_the_ladder_is_the_published_recipe():
    """Channel, strategy and γ of the pooling, 0 being the mean; the formulas are tested where they are."""
    steps = configurations("ladder")
    kinds = [(c.branch.channel, c.branch.strategy.name, getattr(c.embedding.pooling, "gamma", 0)) for c in steps]
    near = [("near", "frozen", 0), ("near", "frozen", 4), ("near", "frozen", 8), ("near", "lora", 4)]
    assert kinds == [*near, ("cancel", "frozen", 4), ("cancel", "lora", 4)]
    assert {c.detector for c in steps} == {BandKnnSpec(banks="pooled", density=FITTED)}
    assert all(f"{c.expected:.2f}" in PAGE for c in steps)
