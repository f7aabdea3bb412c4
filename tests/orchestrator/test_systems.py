"""The built-in systems: their size, what they share, and that every branch of theirs can be made and trained."""

import pytest

from branches.audio.cache import open_cache
from branches.audio.channels import with_cancellation
from branches.data.dataset import read_index
from branches.data.synthetic import SyntheticSize, write_dataset
from branches.frozen import frozen_embeddings
from branches.spec import AugmentationSpec
from branches.training.finetuning import train
from branches.training.training_set import training_clips
from orchestrator.plan import make_plan
from orchestrator.system import SYSTEMS, load_system, load_systems

NAMES = sorted({path.stem for path in SYSTEMS.glob("*.yaml")} - {"demo"})


def plan(*names):
    return make_plan(load_systems(names, backbone="tiny"), None)


def test_the_systems_have_the_structure_of_the_report():
    assert len(plan("s1").branches) == 1
    assert len(plan("s2").branches) == 10
    assert len(plan("s4").branches) == 7
    third = plan("s3")
    assert len(third.trees["s3"]) == 3
    assert len(third.branches) >= 30
    assert all(branch.scorings[0].detector.name == "mahalanobis" for branch in (*plan("s1", "s2", "s4").branches,))


def test_shared_branches_are_trained_once():
    assert len(plan("s1", "s2").branches) == 10
    assert len(plan("s1", "s2", "s3").branches) < sum(len(plan(name).branches) for name in ("s1", "s2", "s3"))


def test_the_report_s_differences_are_there():
    specs = [branch.spec for branch in plan("s2").branches]
    assert {spec.objective.name for spec in specs} == {"arcface", "softmax", "subcenter_arcface"}
    assert {spec.strategy.name for spec in specs} == {"full", "partial", "lora"}
    assert {spec.masked_prediction is None for spec in specs} == {True, False}
    assert all(branch.spec.augmentation.generated for branch in plan("s4").branches)


def test_generated_clips_of_s4_and_s5_are_one_set():
    fourth = load_system("s4").subsystems["mahalanobis"]["arcface_full"].branch
    heads = load_system("s5").subsystems["heads"]
    wanted = [c.branch for c in heads.values() if c.branch.augmentation.generated]
    assert [(b.augmentation.generated, b.channel) for b in wanted] == [(fourth.augmentation.generated, fourth.channel)]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = tmp_path_factory.mktemp("systems")
    write_dataset(root / "data", SyntheticSize(10, 4, 1, 1.0), machines=["rotor", "slider"])
    index = read_index(root / "data")
    audio = with_cancellation(open_cache(root / "data", index, root / "cache"), root / "cache")
    return audio, index


@pytest.mark.parametrize("name", NAMES)
def test_every_branch_can_be_made(clips, name, tmp_path):
    audio, index = clips
    taken = {branch.spec.model_copy(update={"seed": 0}): branch.embeddings for branch in plan(name).branches}
    for spec, embeddings in taken.items():
        inputs = spec.frozen_inputs(embeddings)
        frozen = frozen_embeddings(inputs[0], inputs, audio, tmp_path, "cpu") if inputs else None
        assert frozen is None or len(frozen) == index.num_rows
        if spec.strategy.name != "frozen":
            training = spec.training.model_copy(update={"steps": 1, "batch_size": 4, "crop_seconds": 0.5})
            augmentation = AugmentationSpec.model_validate({**spec.augmentation.model_dump(), "generated": None})
            short = spec.model_copy(update={"training": training, "augmentation": augmentation})
            train(short, training_clips(audio, index, short, frozen))
