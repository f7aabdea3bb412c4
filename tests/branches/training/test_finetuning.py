import dataclasses
import sys
from functools import partial
from typing import get_args

import numpy as np
import pytest
import torch

from branches.audio.cache import open_cache
from branches.beats.encoder import apply_layer, recomputed
from branches.data.dataset import read_index
from branches.data.synthetic import SyntheticSize, write_dataset
from branches.model import BranchModel
from branches.spec import BranchSpec, MixupSpec, ObjectiveSpec, SubclusterAdaCosSpec
from branches.training import finetuning
from branches.training.augment import mixing
from branches.training.finetuning import mixed_loss, train
from branches.training.objectives import build_objective
from branches.training.training_set import training_clips
from scoring.errors import InputError

OBJECTIVES = get_args(get_args(ObjectiveSpec)[0])
SPEC = BranchSpec.model_validate(
    {
        "embedding_dim": 8,
        "objective": {"name": "arcface", "scale": 16, "margin": 0.2},
        "augmentation": {"time_mask": 10, "frequency_mask": 16},
        "training": {"steps": 12, "batch_size": 8, "crop_seconds": 0.6, "learning_rate": 2e-3, "warmup_steps": 3},
    }
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = tmp_path_factory.mktemp("train")
    write_dataset(root / "data", SyntheticSize(10, 2, 1, 1.0), machines=["rotor", "valve", "gearbox"])
    index = read_index(root / "data")
    return training_clips(open_cache(root / "data", index, root / "cache"), index, SPEC)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def changed(spec, **training):
    return spec.model_copy(update={"training": spec.training.model_copy(update=training)})


def with_settings(**settings):
    """`SPEC` with some settings as in YAML."""
    return BranchSpec.model_validate({**SPEC.model_dump(), **settings})


@pytest.mark.parametrize("objective", [spec().name for spec in OBJECTIVES])
def test_training_learns_the_classes(clips, objective):
    losses = []
    train(changed(with_settings(objective=objective), steps=60), clips, report=lambda step, loss: losses.append(loss))
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])


def test_the_scale_stays_bounded_with_mixup(clips):
    """Two labels of a clip must not drive each other's scale: it would grow at every step."""
    torch.manual_seed(0)
    objective = build_objective(SubclusterAdaCosSpec(clusters=4), 16, 12)
    points = torch.nn.Parameter(torch.randn(48, 16))
    optimizer = torch.optim.Adam([points, *objective.parameters()], 0.05)
    labels, scales = torch.arange(48) % 12, []
    for _ in range(300):
        partner, share = mixing(48, MixupSpec(probability=0.5))
        optimizer.zero_grad()
        mixed_loss(objective, points, labels, labels[partner], share).backward()
        optimizer.step()
        scales.append(objective.scale.item())
    assert max(scales) < 30


def test_same_seed_same_weights_other_seed_others(clips):
    first = weights(train(SPEC, clips))
    assert torch.equal(first, weights(train(SPEC, clips)))
    assert not torch.equal(first, weights(train(SPEC.model_copy(update={"seed": 1}), clips)))


def test_partial_training_leaves_the_rest_alone(clips):
    spec = with_settings(strategy={"name": "partial", "layers": 1})
    before, after = BranchModel(spec).backbone, train(spec, clips).backbone
    moved = {
        n for (n, a), b in zip(before.named_parameters(), after.parameters(), strict=True) if not torch.equal(a, b)
    }
    assert moved
    assert all(name.startswith("encoder.layers.1.") for name in moved)


class Stopped(Exception):
    pass


EVERYTHING = {
    "objective": {"name": "subcluster_adacos", "clusters": 2},
    "masked_prediction": {},
    "augmentation": {"time_mask": 10, "noise": {}, "mixup": {}},
    "training": {**SPEC.training.model_dump(), "accumulation": 2, "average": 0.9},
}


@pytest.mark.parametrize(
    ("settings", "stop_at"),
    [
        (EVERYTHING, 5),
        ({**EVERYTHING, "strategy": {"name": "lora", "rank": 2}}, 11),
    ],
    ids=str,
)
def test_a_resumed_training_ends_bit_for_bit_the_same(clips, tmp_path, settings, stop_at):
    spec = with_settings(**settings)
    checkpoint = tmp_path / "branch.pt"

    def stop(step, loss):
        if step == stop_at:
            raise Stopped

    curve, whole = [], []
    with pytest.raises(Stopped):
        train(spec, clips, checkpoint, stop, checkpoint_seconds=0)
    assert torch.load(checkpoint, weights_only=True)["step"] == stop_at - 1
    resumed = train(spec, clips, checkpoint, lambda *point: curve.append(point), checkpoint_seconds=0)
    assert torch.equal(weights(resumed), weights(train(spec, clips, report=lambda *point: whole.append(point))))
    assert curve == whole


def test_lower_layers_learn_more_slowly(clips):
    spec = with_settings(strategy={"name": "full", "layer_decay": 0.01})
    before, after = _initial(spec).backbone, train(spec, clips).backbone
    moved = [
        torch.cat([(a - b).abs().flatten() for a, b in zip(x.parameters(), y.parameters(), strict=True)]).mean()
        for x, y in zip(before.layers, after.layers, strict=True)
    ]
    assert moved[0] < 0.1 * moved[1]


def test_generated_clips_take_part(clips):
    generated = np.random.default_rng(0).normal(size=(6, 70, 128)).astype(np.float16)
    labels = np.concatenate([clips.labels, np.zeros(6, np.int64)])
    more = dataclasses.replace(clips, generated=generated, labels=labels)
    assert not torch.equal(weights(train(SPEC, more)), weights(train(SPEC, clips)))
    only = dataclasses.replace(more, rows=clips.rows[:0], labels=np.arange(6) % 2)
    train(SPEC, only)


def _initial(spec):
    torch.manual_seed(spec.seed)
    return BranchModel(spec)


def test_a_checkpoint_of_other_classes_means_a_fresh_start(clips, tmp_path, caplog):
    checkpoint = tmp_path / "branch.pt"
    train(SPEC, clips, checkpoint, checkpoint_seconds=0)
    renamed = dataclasses.replace(clips, labels=(clips.labels + 1) % clips.n_classes)
    assert torch.equal(weights(train(SPEC, renamed, checkpoint)), weights(train(SPEC, renamed)))
    assert "other clips or classes" in caplog.text


def test_a_single_class_leaves_the_network_as_initialised(clips, caplog):
    one = dataclasses.replace(clips, labels=np.zeros_like(clips.labels), unattributed=np.zeros(1, bool))
    trained = train(SPEC, one)
    assert torch.equal(weights(trained), weights(_initial(SPEC)))
    assert "all of one class" in caplog.text


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda s: s().name)
@pytest.mark.parametrize("pooling", ["mean", "attentive_statistics", "band_statistics", "relative_deviation"])
def test_only_the_encoder_computes_in_bfloat16(objective, pooling):
    model = BranchModel(with_settings(pooling=pooling), train_in_bfloat16=True)
    head = build_objective(objective(), 8 * model.pooling.bands, 3)
    seen = []
    model.backbone.layers[0].fc1.register_forward_hook(lambda *a: seen.append(a[-1].dtype))
    model.pooling.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    loss = head(model(torch.randn(4, 64, 128), None).flatten(1), torch.tensor([0, 1, 2, 0])).mean()
    loss.backward()
    assert seen == [torch.bfloat16, torch.float32]
    assert loss.dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in (*model.parameters(), *head.parameters()) if p.grad is not None)


def test_layers_that_are_computed_again_learn_the_same(clips, monkeypatch):
    """Dropout too: `tiny` has some."""
    again = []
    monkeypatch.setattr(finetuning, "_prepare_layers", lambda encoder, *_: setattr(encoder, "apply_layer", apply))

    def apply(layer, *inputs):
        return recomputed(lambda layer, *inputs: (again.append(layer), apply_layer(layer, *inputs))[1])(layer, *inputs)

    recalculated = weights(train(SPEC, clips))
    assert len(again) == 2 * 2 * SPEC.training.steps
    monkeypatch.undo()
    assert torch.equal(recalculated, weights(train(SPEC, clips)))


def test_a_batch_that_does_not_fit_is_computed_with_less_memory(clips, tmp_path, caplog):
    """The allocator's error is raised here by the report of a step; it comes from any operation of a GPU."""
    reports = []

    def fail_once(step, loss):
        reports.append(step)
        if len(reports) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model = train(SPEC, clips, tmp_path / "checkpoint.pt", fail_once, checkpoint_seconds=0)
    assert "layers are computed twice" in caplog.text
    assert model.backbone.encoder.apply_layer is not apply_layer
    assert torch.equal(weights(model), weights(train(SPEC, clips)))

    def fail(step, loss):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(InputError, match=r"a batch of \d+ clips of .* does not fit into the GPU's memory; halve"):
        train(SPEC, clips, report=fail)


def test_compiling_without_a_compiler_is_refused(clips, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CC", "nothing")
    with pytest.raises(InputError, match="--compile needs a C compiler"):
        train(SPEC, clips, compiled=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler's own doing
def test_a_compiled_training_learns_the_same(clips, monkeypatch):
    monkeypatch.setenv("CC", sys.executable)  # `aot_eager` needs no compiler
    compiled, plain = ([], [])
    frames = torch._dynamo.utils.counters["frames"]
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # the default needs a compiler
    model = train(SPEC, clips, report=lambda *point: compiled.append(point), compiled=True)
    train(SPEC, clips, report=lambda *point: plain.append(point))
    np.testing.assert_allclose(np.array(compiled), np.array(plain), rtol=1e-3)
    assert not any("_orig_mod" in name for name in model.state_dict())
    assert frames["ok"] <= 3  # one for all layers, but that the first holds the table of positions
