import errno
import math
import re
import sys
from dataclasses import replace
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import get_args
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

from branches import spec as specs
from branches.beats import load_beats
from branches.beats.encoder import apply_layer
from branches.model import BranchModel
from branches.spec import BranchSpec
from branches.training.augment import mixing
from branches.training.batches import Batch
from branches.training.finetuning import FineTuning, mixed_loss, train
from branches.training.loop import Progress, learning_rate, resume, run
from branches.training.masked_prediction import MaskedPrediction
from branches.training.objectives import build_objective
from branches.training.training_set import training_clips
from scoring.errors import InputError

CLASSES = SimpleNamespace(n_classes=3, unattributed=np.zeros(3, bool))
LINE = specs.TrainingSpec(steps=101, batch_size=4, learning_rate=0.1, warmup_steps=3)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def spec_with(training=None, augmentation=None, **settings):
    defaults = {"steps": 12, "batch_size": 8, "crop_seconds": 0.6, "learning_rate": 2e-3, "warmup_steps": 3}
    objective = {"name": "arcface", "scale": 16, "margin": 0.2}
    masks = {"time_mask": 10, "frequency_mask": 16} if augmentation is None else augmentation
    settings = {"embedding_dim": 8, "objective": objective, "augmentation": masks, **settings}
    return BranchSpec.model_validate({"training": {**defaults, **(training or {})}, **settings})


SPEC = spec_with()


def weights_and_curve(spec, clips, **options):
    curve = []
    model = train(spec, clips, report=lambda *point: curve.append(point), **options)
    return parameters_to_vector(model.parameters()).tolist(), curve


@pytest.fixture(scope="module")
def clips(audio, index):
    return training_clips(audio, index, SPEC)


@pytest.fixture(scope="module")
def undisturbed(clips):
    return weights_and_curve(SPEC, clips)


@pytest.mark.slow
def test_the_seed_alone_says_what_is_learnt_and_a_resumed_training_ends_the_same(clips, undisturbed, tmp_path):
    weights, curve = undisturbed
    assert [curve[0][1], curve[-1][1]] == pytest.approx([11.5523, 4.2149], rel=1e-3)  # of this TRAINING_VERSION
    assert weights_and_curve(SPEC, clips, workers=3) == undisturbed
    assert weights_and_curve(spec_with(seed=1), clips)[0] != weights
    objective, strategy = {"name": "subcluster_adacos", "clusters": 2}, {"name": "lora", "rank": 2}
    training, augmentation = {"accumulation": 2, "average": 0.9}, {"time_mask": 10, "noise": {}, "mixup": {}}
    spec = spec_with(training, augmentation, objective=objective, strategy=strategy, masked_prediction={})
    checkpoint, four = tmp_path / "branch.pt", iter(range(4))
    with pytest.raises(StopIteration):
        train(spec, clips, checkpoint, lambda *_: next(four), checkpoint_seconds=0)
    saved = torch.load(checkpoint, weights_only=True)
    assert (saved["step"], saved["signature"]) == (4, clips.signature)
    weights, curve = weights_and_curve(spec, clips)
    assert weights_and_curve(spec, clips, checkpoint=checkpoint) == (weights, curve)
    assert [curve[0][1], curve[-1][1]] == pytest.approx([5.0890, 4.8824], rel=1e-3)


def test_what_a_strategy_trains_is_in_the_optimizer_once_and_at_its_rate():
    for strategy, factors in (
        ("head", {}),
        ({"name": "partial", "layers": 0}, {}),
        ({"name": "partial", "layers": 1}, {"encoder.layers.1.": 1.0}),
        ({"name": "partial", "layers": 9}, {"encoder.layers.": 1.0}),
        ({"name": "full", "layer_decay": 0.5}, {"encoder.layers.1.": 1.0, "encoder.layers.0.": 0.5, "": 0.25}),
        ({"name": "lora", "rank": 2, "targets": ["fc2"]}, {"layers.0.fc2.lora": 1.0, "layers.1.fc2.lora": 1.0}),
    ):
        parts, expected = FineTuning(spec_with(strategy=strategy, masked_prediction={}), CLASSES), {}
        names = {id(p): name for name, p in parts.named_parameters()}
        for name in names.values():
            of = factors if name.startswith("model.backbone.") else {"": 1.0}
            for part in reversed(of):  # the first that fits
                expected |= {name: of[part]} if part in name else {}
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


def batch_of(*lengths, generated=()):
    rng = np.random.default_rng(0)
    waveforms = [0.1 * rng.normal(size=n).astype(np.float32) for n in lengths]
    features = [rng.normal(size=(n, 128)).astype(np.float32) for n in generated]
    return Batch(waveforms, np.arange(len(waveforms) + len(features)) % 3, features)


def test_a_mixture_has_two_labels_padding_no_say_and_clips_in_a_batch_the_loss_that_they_have_alone(monkeypatch):
    objective, share = Mock(side_effect=lambda embeddings, labels: labels.float()), torch.tensor([1.0, 0.7, 0.2])
    loss = mixed_loss(objective, torch.zeros(3, 2), torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5]), share)
    assert loss.item() == pytest.approx((0 + (0.7 * 1 + 0.3 * 4) + (0.2 * 2 + 0.8 * 5)) / 3)
    (_, larger, smaller), _ = objective.adapt.call_args
    assert (larger.tolist(), smaller.tolist()) == ([0, 1, 5], [0, 4, 2])
    parts = FineTuning(spec_with(augmentation={"mixup": {}}, masked_prediction={}), CLASSES)
    heard, counted, encode, predict = [], [], parts.model.encode, parts.masked.forward
    monkeypatch.setattr(parts.model, "encode", lambda *a: heard.append(a[1]) or encode(*a))
    monkeypatch.setattr(parts.masked, "forward", lambda *a: counted.append(a[2]) or predict(*a))
    torch.manual_seed(0)
    partner, share = mixing(16, specs.MixupSpec())
    torch.manual_seed(0)
    parts(batch_of(*[9_600, 4_000] * 8))
    frames = torch.tensor([58, 23] * 8)
    shortest = torch.where(share < 1, torch.minimum(frames, frames[partner]), frames)
    assert torch.equal(heard[0], torch.arange(58) >= shortest[:, None])
    padding = torch.arange(24) >= (shortest // 16 * 8)[:, None]
    assert not (counted[0] & padding).any()
    assert (counted[0] & ~padding).sum() > 16
    parts, batch = FineTuning(spec_with(augmentation={}), CLASSES).eval(), batch_of(9_600, 9_000, 4_000, generated=[48])
    alone = [Batch([w], batch.labels[i : i + 1]) for i, w in enumerate(batch.waveforms)]
    alone.append(Batch([], batch.labels[3:], batch.features))
    torch.testing.assert_close(parts(batch), torch.stack([parts(one) for one in alone]).mean(), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler's own doing
def test_with_little_memory_or_compiled_a_training_learns_the_same(clips, undisturbed, tmp_path, monkeypatch, caplog):
    full = torch.OutOfMemoryError("CUDA out of memory")
    report = Mock(side_effect=[None, None, full, *[None] * 99])
    model = train(SPEC, clips, tmp_path / "branch.pt", report, checkpoint_seconds=0)
    assert "layers are computed twice" in caplog.text
    assert model.backbone.encoder.apply_layer is not apply_layer
    assert parameters_to_vector(model.parameters()).tolist() == undisturbed[0]
    with pytest.raises(InputError, match=r"a batch of 8 clips of 0.6 s does not fit into the GPU's memory; halve"):
        train(SPEC, clips, report=Mock(side_effect=full))
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


@pytest.mark.parametrize("spec", [cls() for cls in get_args(get_args(specs.ObjectiveSpec)[0])], ids=str)
def test_gradients_are_finite_at_the_extremes(spec):
    objective, centre, labels = build_objective(spec, 8, 6), torch.eye(8)[:1], torch.tensor([0, 0, 1])
    extremes = torch.cat([centre, -centre, centre * 1e4]).requires_grad_()
    if spec.name == "softmax":
        entropy = F.cross_entropy(objective.classifier(extremes), labels, reduction="none")
        torch.testing.assert_close(objective(extremes, labels), entropy)
    else:
        objective.centres.data.copy_(centre.expand_as(objective.centres))
    objective(extremes, labels).sum().backward()
    assert torch.isfinite(extremes.grad).all()


def test_arcface_enlarges_the_angle_to_the_nearest_counting_centre_of_the_true_class():
    several = {"scale": 7, "margin": 0.3, "centres": 3}
    for spec, centres in (
        (specs.ArcFaceSpec(scale=7, margin=0), [1, 1, 1, 1]),
        (specs.ArcFaceSpec(scale=7, margin=1.2), [1, 1, 1, 1]),
        (specs.SubcenterArcFaceSpec(of="all", **several), [3, 3, 3, 3]),
        (specs.SubcenterArcFaceSpec(of="unattributed", **several), [1, 3, 1, 3]),
    ):
        objective = build_objective(spec, 2, 4, torch.tensor([False, True] * 2))
        embeddings, labels = torch.randn(99, 2), torch.arange(99) % 4
        cosines = (F.normalize(embeddings) @ F.normalize(objective.centres).T).reshape(99, 4, -1)
        cosine = torch.stack([cosines[:, label, :n].amax(1) for label, n in enumerate(centres)], 1)
        enlarged = torch.cos((torch.acos(cosine) + spec.margin).clamp(max=math.pi))  # past π the margin is a reward
        logits = 7 * torch.where(F.one_hot(labels, 4).bool(), enlarged, cosine)
        entropy = F.cross_entropy(logits, labels, reduction="none")
        torch.testing.assert_close(objective(embeddings, labels), entropy, atol=1e-3, rtol=0)


@pytest.mark.parametrize("clusters", [1, 2])
def test_the_scale_of_adacos_starts_and_moves_as_published_within_its_bounds(clusters):
    objective = build_objective(specs.SubclusterAdaCosSpec(clusters=clusters), 8, 5)
    start, labels, others = 2**0.5 * math.log(5 * clusters - 1), *torch.randint(5, (2, 32))
    embeddings = torch.randn(32, 8)
    cosine = (F.normalize(embeddings) @ F.normalize(objective.centres).T).reshape(32, 5, clusters)
    probability = (start * cosine).flatten(1).softmax(1).reshape(32, 5, clusters).sum(2)
    torch.testing.assert_close(objective(embeddings, labels), -probability[torch.arange(32), labels].log())
    own = F.one_hot(labels, 5).bool() | F.one_hot(others, 5).bool()  # neither class of a mixture is a wrong one
    b = (start * cosine).exp().sum(2).masked_fill(own, 0).sum(1).mean()
    theta = torch.acos(cosine.amax(2).gather(1, labels[:, None])).median().clamp(max=math.pi / 4)
    objective.adapt(embeddings, labels, others)
    assert objective.scale.item() == pytest.approx((b.log() / theta.cos()).item(), rel=1e-5)
    objective = build_objective(specs.SubclusterAdaCosSpec(clusters=1), 2, 2)
    objective.centres.data.copy_(torch.eye(2))
    for label, bound in ((0, 1.0), (1, 100.0)):
        for _ in range(60):
            objective.adapt(torch.eye(2)[:1], torch.tensor([label]), torch.tensor([label]))
        assert objective.scale.item() == bound


def test_whole_patches_are_masked_and_predicted_of_tokenizers_that_are_neither_trained_nor_saved():
    auxiliary, features = MaskedPrediction(specs.MaskedPredictionSpec(), width=6), torch.randn(9, 70, 128)
    hidden, masked = auxiliary.mask(features, 0.0)
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


def line():
    """A slope and an offset, the latter at half the learning rate, and one parameter that is not trained."""
    module = nn.Module()
    module.slope, module.offset = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    module.fixed = nn.Parameter(torch.ones(1000), requires_grad=False)
    groups = [{"params": [module.slope]}, {"params": [module.offset], "factor": 0.5}]
    return Progress(module, torch.optim.AdamW(groups), "these clips")


def loss_of(module, number):
    x = torch.randn(8, generator=torch.Generator().manual_seed(number))
    return (module.slope * x + module.offset - 2 * x - 1).square().mean()


def ended(progress, training=LINE, checkpoint=None, reports=1_000, seconds=0.0):
    """The trained parameters and the curve; after so many reports, of every other step, the next one raises."""
    curve, left = [], iter(range(reports))
    losses = partial(loss_of, progress.module)
    run(progress, training, losses, checkpoint, lambda *point: curve.append((next(left), *point)), seconds)
    return [progress.module.slope.item(), progress.module.offset.item()], curve


def interrupted(checkpoint, training=LINE, reports=10):
    with pytest.raises(StopIteration):
        ended(line(), training, checkpoint, reports)
    return checkpoint


def test_steps_are_those_of_adamw_with_cut_gradients_at_a_rate_that_warms_up_and_falls_as_half_a_cosine():
    rates = [learning_rate(LINE, step) for step in range(LINE.steps + 1)]
    assert rates[:4] == pytest.approx([0.1 / 3, 0.2 / 3, 0.1, 0.1])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert [rates[30] + rates[74], rates[52], rates[-1]] == pytest.approx([0.1, 0.05, 0], abs=1e-9)
    plain, averages = line(), torch.zeros(2)
    for step in range(LINE.steps):
        for group, factor in zip(plain.optimizer.param_groups, (1.0, 0.5), strict=True):
            group["lr"] = factor * rates[step]
        plain.optimizer.zero_grad()
        loss_of(plain.module, step).backward()
        norm = torch.cat([p.grad for p in plain.trained]).norm()
        for parameter in plain.trained:
            parameter.grad /= norm.clamp(min=1.0)
        plain.optimizer.step()
        decay = min(0.9, (1 + step) / (10 + step))  # averages forget the start
        averages = decay * averages + (1 - decay) * torch.cat([p.detach() for p in plain.trained])
    assert ended(line())[0] == pytest.approx([p.item() for p in plain.trained], rel=1e-4)
    averaged, _ = ended(line(), LINE.model_copy(update={"average": 0.9}))
    assert averaged == pytest.approx(averages.tolist(), rel=1e-4)


def test_checkpoints_come_in_time_go_if_it_diverges_and_if_damaged_it_begins_anew(tmp_path, monkeypatch, caplog):
    ended(line(), checkpoint=tmp_path / "training.pt", seconds=1e6)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        ended(line(), checkpoint=tmp_path / "gone" / "training.pt")
    progress, diverging = resume(line, interrupted(tmp_path / "training.pt")), {"learning_rate": 1e30}
    with pytest.raises(InputError, match=r"the loss is (inf|nan) at step 22: training diverged; lower the learning"):
        ended(progress, LINE.model_copy(update=diverging), tmp_path / "training.pt")
    assert list(tmp_path.iterdir()) == []
    checkpoint, whole = interrupted(tmp_path / "training.pt"), ended(line())
    for error in (torch.OutOfMemoryError(), MemoryError(), OSError(errno.EIO, "Input/output error")):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "load", Mock(side_effect=error))
            with pytest.raises(type(error)):
                resume(line, checkpoint)
    assert resume(line, checkpoint).step == 21
    assert resume(lambda: replace(line(), signature="others"), checkpoint).step == 0
    assert "it belongs to a training on other clips or classes" in caplog.text
    content = checkpoint.read_bytes()
    for kept, behind in product((0, 100, -1000), (b"", b"no checkpoint", bytes(30_000))):
        caplog.clear()
        checkpoint.write_bytes(content[:kept] + behind)
        assert ended(resume(line, checkpoint)) == whole
        assert re.search(f"checkpoint {checkpoint} cannot be used .*; training starts over", caplog.text)
