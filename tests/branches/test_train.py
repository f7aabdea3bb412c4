import numpy as np
import pytest
import torch

from branches.audio import open_cache
from branches.dataset import read_index
from branches.model import BranchModel, embed
from branches.objectives import build_objective
from branches.pooling import POOLINGS
from branches.spec import ArcFaceSpec, BranchSpec, SoftmaxSpec
from branches.synthetic import SyntheticSize, write_dataset
from branches.train import TrainingClips, batch_rows, learning_rate, train, training_clips
from scoring.errors import InputError

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
    return training_clips(open_cache(root / "data", index, root / "cache"), index)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def changed(spec, **training):
    return spec.model_copy(update={"training": spec.training.model_copy(update=training)})


@pytest.mark.parametrize("objective", ["softmax", "arcface"])
def test_training_learns_the_classes(clips, objective):
    spec = changed(SPEC, steps=60).model_copy(
        update={"objective": BranchSpec.model_validate({"objective": {"name": objective}}).objective}
    )
    losses = []
    train(spec, clips, report=lambda step, loss: losses.append(loss))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_same_seed_same_weights_other_seed_others(clips):
    first = weights(train(SPEC, clips))
    assert torch.equal(first, weights(train(SPEC, clips)))
    assert not torch.equal(first, weights(train(SPEC.model_copy(update={"seed": 1}), clips)))


def test_partial_training_leaves_the_rest_alone(clips):
    spec = SPEC.model_copy(
        update={"strategy": BranchSpec.model_validate({"strategy": {"name": "partial", "layers": 1}}).strategy}
    )
    before, after = BranchModel(spec).backbone, train(spec, clips).backbone
    moved = {
        n for (n, a), b in zip(before.named_parameters(), after.parameters(), strict=True) if not torch.equal(a, b)
    }
    assert moved
    assert all(name.startswith("encoder.layers.1.") for name in moved)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("stop_at", [1, 5, 11])
def test_a_resumed_training_ends_bit_for_bit_the_same(clips, tmp_path, stop_at):
    checkpoint = tmp_path / "branch.pt"

    def stop(step, loss):
        if step == stop_at:
            raise Stopped

    reports = []
    with pytest.raises(Stopped):
        train(SPEC, clips, checkpoint, stop, checkpoint_seconds=0)
    resumed = train(SPEC, clips, checkpoint, lambda step, loss: reports.append(step), checkpoint_seconds=0)
    assert reports[0] == stop_at  # the checkpoint of the step before was used
    assert torch.equal(weights(resumed), weights(train(SPEC, clips)))


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None])
def test_a_damaged_checkpoint_means_a_fresh_start(clips, tmp_path, damage, caplog):
    checkpoint = tmp_path / "branch.pt"
    train(SPEC, clips, checkpoint, checkpoint_seconds=0)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1000] if damage is None else damage)
    assert torch.equal(weights(train(SPEC, clips, checkpoint)), weights(train(SPEC, clips)))
    assert "training starts anew" in caplog.text


def test_a_single_class_leaves_the_network_as_initialised(clips, caplog):
    one = TrainingClips(clips.audio, clips.rows, np.zeros_like(clips.labels), 1)
    trained = train(SPEC, one)
    torch.manual_seed(SPEC.seed)
    assert torch.equal(weights(trained), weights(BranchModel(SPEC)))
    assert "all of one class" in caplog.text


def test_a_diverging_training_says_so_and_leaves_no_checkpoint(clips, tmp_path):
    checkpoint = tmp_path / "branch.pt"
    with pytest.raises(InputError, match=r"the loss is nan at step .* training diverged"):
        train(changed(SPEC, learning_rate=1e30), clips, checkpoint, checkpoint_seconds=0)
    assert not checkpoint.exists()


@pytest.mark.parametrize("objective", [SoftmaxSpec(), ArcFaceSpec()], ids=lambda s: s.name)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_only_the_encoder_computes_in_bfloat16(objective, pooling):
    spec = SPEC.model_copy(update={"pooling": pooling})
    model, head = BranchModel(spec, encode_in_bfloat16=True), build_objective(objective, 8, 3)
    seen = []
    model.backbone.layers[0].fc1.register_forward_hook(lambda *a: seen.append(a[-1].dtype))
    model.pooling.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    loss = head(model(torch.randn(4, 64, 128), None), torch.tensor([0, 1, 2, 0]))
    loss.backward()
    assert seen == [torch.bfloat16, torch.float32]
    assert loss.dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in (*model.parameters(), *head.parameters()) if p.grad is not None)


def test_every_pass_sees_every_clip_once():
    n, batch = 23, 5
    rows = np.concatenate([batch_rows(n, batch, step, seed=3) for step in range(23)])
    for k in range(5):
        assert sorted(rows[k * n : (k + 1) * n]) == list(range(n))
    assert rows[:n].tolist() != rows[n : 2 * n].tolist()
    assert len(batch_rows(3, 32, 0, 0)) == 32


def test_the_learning_rate_warms_up_and_falls():
    rates = [learning_rate(SPEC.training, step) for step in range(SPEC.training.steps + 1)]
    assert rates[:3] == pytest.approx([2e-3 / 3, 4e-3 / 3, 2e-3])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_embeddings_do_not_depend_on_the_batch(clips):
    torch.manual_seed(0)
    model = BranchModel(SPEC)
    together = embed(model, clips.audio, "near")
    np.testing.assert_allclose(together, embed(model, clips.audio, "near", batch_size=1), atol=1e-5)
    assert together.shape == (len(clips.audio), 8)
    assert not np.allclose(together, embed(model, clips.audio, "far"), atol=1e-3)


def test_clips_of_different_lengths_embed_as_they_do_alone(tmp_path):
    write_dataset(tmp_path / "a", SyntheticSize(2, 1, 1, 1.0), machines=["rotor"])
    write_dataset(tmp_path / "b", SyntheticSize(2, 1, 1, 1.7), machines=["valve"])
    (tmp_path / "b" / "valve").rename(tmp_path / "a" / "valve")
    index = read_index(tmp_path / "a")
    audio = open_cache(tmp_path / "a", index, tmp_path / "cache")
    torch.manual_seed(0)
    model = BranchModel(SPEC)
    np.testing.assert_allclose(embed(model, audio, "near", 32), embed(model, audio, "near", 1), atol=1e-4)
