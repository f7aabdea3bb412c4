import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector

from branches.beats import load_beats
from branches.beats.encoder import apply_layer
from branches.model import BranchModel
from branches.spec import BranchSpec, MixupSpec
from branches.training.augment import mixing
from branches.training.batches import Batch
from branches.training.finetuning import FineTuning, mixed_loss, train
from branches.training.training_set import training_clips
from scoring.errors import InputError

TRAINING = {"steps": 12, "batch_size": 8, "crop_seconds": 0.6, "learning_rate": 2e-3, "warmup_steps": 3}
MASKS = {"time_mask": 10, "frequency_mask": 16}
CLASSES = SimpleNamespace(n_classes=3, unattributed=np.zeros(3, bool))


def spec_with(training=None, augmentation=MASKS, **settings):
    objective, training = {"name": "arcface", "scale": 16, "margin": 0.2}, {**TRAINING, **(training or {})}
    settings = {"embedding_dim": 8, "objective": objective, "augmentation": augmentation, **settings}
    return BranchSpec.model_validate({"training": training, **settings})


SPEC = spec_with()


@pytest.fixture(scope="module")
def clips(audio, index):
    return training_clips(audio, index, SPEC)


def trained(spec, clips, **options):
    """A branch's weights and curve."""
    curve = []
    model = train(spec, clips, report=lambda *point: curve.append(point), **options)
    return parameters_to_vector(model.parameters()).tolist(), curve


@pytest.fixture(scope="module")
def undisturbed(clips):
    return trained(SPEC, clips)


@pytest.mark.slow
def test_training_learns_the_classes_and_the_seed_alone_says_how(clips, undisturbed):
    assert trained(SPEC, clips, workers=3) == undisturbed
    first, last = undisturbed[1][0][1], undisturbed[1][-1][1]
    assert [first, last] == pytest.approx([11.5523, 4.2149], rel=1e-3)  # of this TRAINING_VERSION
    assert trained(spec_with(seed=1), clips)[0] != undisturbed[0]
    losses = [loss for _, loss in trained(spec_with({"steps": 50}), clips)[1]]
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])


@pytest.mark.slow
def test_a_resumed_training_ends_bit_for_bit_the_same(clips, tmp_path):
    spec = spec_with(
        {"accumulation": 2, "average": 0.9},
        {"time_mask": 10, "noise": {}, "mixup": {}},
        objective={"name": "subcluster_adacos", "clusters": 2},
        strategy={"name": "lora", "rank": 2},
        masked_prediction={},
    )
    checkpoint, four = tmp_path / "branch.pt", iter(range(4))
    with pytest.raises(StopIteration):
        train(spec, clips, checkpoint, lambda *_: next(four), checkpoint_seconds=0)
    saved = torch.load(checkpoint, weights_only=True)
    assert (saved["step"], saved["signature"]) == (4, clips.signature)
    weights, curve = trained(spec, clips)
    assert trained(spec, clips, checkpoint=checkpoint) == (weights, curve)
    assert [curve[0][1], curve[-1][1]] == pytest.approx([5.0890, 4.8824], rel=1e-3)


@pytest.mark.parametrize(
    ("strategy", "factors"),
    [
        ("head", {}),
        ({"name": "partial", "layers": 0}, {}),
        ({"name": "partial", "layers": 1}, {"encoder.layers.1.": 1.0}),
        ({"name": "partial", "layers": 9}, {"encoder.layers.": 1.0}),
        ({"name": "full", "layer_decay": 0.5}, {"encoder.layers.1.": 1.0, "encoder.layers.0.": 0.5, "": 0.25}),
        ({"name": "lora", "rank": 2, "targets": ["fc2"]}, {"layers.0.fc2.lora": 1.0, "layers.1.fc2.lora": 1.0}),
    ],
    ids=str,
)
def test_what_a_strategy_trains_is_in_the_optimizer_once_and_at_its_rate(strategy, factors):
    parts = FineTuning(spec_with(strategy=strategy, masked_prediction={}), CLASSES)
    names = {id(p): name for name, p in parts.named_parameters()}

    def factor(name):
        of = factors if name.startswith("model.backbone.") else {"": 1.0}
        return next((of[part] for part in of if part in name), None)

    expected = {name: factor(name) for name in names.values() if factor(name)}
    progress = parts.progress()
    rates = [(names[id(p)], g["factor"]) for g in progress.optimizer.param_groups for p in g["params"]]
    assert sorted(rates) == sorted(expected.items())
    assert {name for name, p in parts.named_parameters() if p.requires_grad} == set(expected)
    assert progress.optimizer.defaults["weight_decay"] == 0.01
    waveforms = torch.randn(2, 8000) * 0.1  # as before it was prepared
    torch.testing.assert_close(parts.model.beats(waveforms)[0], load_beats("tiny")(waveforms)[0])


def test_a_single_class_leaves_the_network_as_initialised(clips, caplog):
    model = train(SPEC, replace(clips, labels=np.zeros_like(clips.labels), unattributed=np.zeros(1, bool)))
    torch.manual_seed(SPEC.seed)
    assert all(map(torch.equal, model.parameters(), BranchModel(SPEC).parameters()))
    assert "the training clips are all of one class" in caplog.text


def test_a_mixture_has_two_labels_by_their_shares():
    objective, share = Mock(side_effect=lambda embeddings, labels: labels.float()), torch.tensor([1.0, 0.7, 0.2])
    loss = mixed_loss(objective, torch.zeros(3, 2), torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5]), share)
    assert loss.item() == pytest.approx((0 + (0.7 * 1 + 0.3 * 4) + (0.2 * 2 + 0.8 * 5)) / 3)
    (_, larger, smaller), _ = objective.adapt.call_args
    assert (larger.tolist(), smaller.tolist()) == ([0, 1, 5], [0, 4, 2])


def batch_of(*lengths, generated=()):
    rng = np.random.default_rng(0)
    waveforms = [0.1 * rng.normal(size=n).astype(np.float32) for n in lengths]
    features = [rng.normal(size=(n, 128)).astype(np.float32) for n in generated]
    return Batch(waveforms, np.arange(len(waveforms) + len(features)) % 3, features)


def test_padding_has_no_say_in_mixtures_and_in_what_is_predicted(monkeypatch):
    parts = FineTuning(spec_with(augmentation={"mixup": {}}, masked_prediction={}), CLASSES)
    heard, counted, encode, predict = [], [], parts.model.encode, parts.masked.forward
    monkeypatch.setattr(parts.model, "encode", lambda *a: heard.append(a[1]) or encode(*a))
    monkeypatch.setattr(parts.masked, "forward", lambda *a: counted.append(a[2]) or predict(*a))
    torch.manual_seed(0)
    partner, share = mixing(16, MixupSpec())
    torch.manual_seed(0)
    parts(batch_of(*[9_600, 4_000] * 8))
    frames = torch.tensor([58, 23] * 8)
    shortest = torch.where(share < 1, torch.minimum(frames, frames[partner]), frames)
    assert torch.equal(heard[0], torch.arange(58) >= shortest[:, None])
    padding = torch.arange(24) >= (shortest // 16 * 8)[:, None]
    assert not (counted[0] & padding).any()
    assert (counted[0] & ~padding).sum() > 16


def test_clips_in_a_batch_have_the_loss_that_they_have_alone():
    parts, batch = FineTuning(spec_with(augmentation={}), CLASSES).eval(), batch_of(9_600, 9_000, 4_000, generated=[48])
    alone = [Batch([w], batch.labels[i : i + 1]) for i, w in enumerate(batch.waveforms)]
    alone.append(Batch([], batch.labels[3:], batch.features))
    torch.testing.assert_close(parts(batch), torch.stack([parts(one) for one in alone]).mean(), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_computed_with_less_memory(clips, undisturbed, tmp_path, caplog):
    """The allocator's error is raised here by the report of a step; it comes from any operation of a GPU."""
    full = torch.OutOfMemoryError("CUDA out of memory")
    report = Mock(side_effect=[None, None, full, *[None] * 99])
    model = train(SPEC, clips, tmp_path / "branch.pt", report, checkpoint_seconds=0)
    assert "layers are computed twice" in caplog.text
    assert model.backbone.encoder.apply_layer is not apply_layer
    assert parameters_to_vector(model.parameters()).tolist() == undisturbed[0]
    with pytest.raises(InputError, match=r"a batch of 8 clips of 0.6 s does not fit into the GPU's memory; halve"):
        train(SPEC, clips, report=Mock(side_effect=full))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler's own doing
def test_a_compiled_training_learns_the_same(clips, undisturbed, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CC", "nothing")
    with pytest.raises(InputError, match="--compile needs a C compiler: install gcc where branches train"):
        train(SPEC, clips, compiled=True)
    monkeypatch.setenv("CC", sys.executable)  # `aot_eager` needs no compiler
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # the default needs a compiler
    model = train(SPEC, clips, compiled=True)
    np.testing.assert_allclose(parameters_to_vector(model.parameters()).tolist(), undisturbed[0], atol=1e-3)
    assert not any("_orig_mod" in name for name in model.state_dict())
    assert 0 < torch._dynamo.utils.counters["frames"]["ok"] <= 3  # one for all layers; the first holds the positions
