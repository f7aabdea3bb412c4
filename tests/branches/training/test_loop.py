from dataclasses import replace

import pytest
import torch
from torch import nn

from branches.spec import TrainingSpec
from branches.training.loop import Progress, learning_rate, resume, run
from scoring.errors import InputError

TRAINING = TrainingSpec(steps=100, batch_size=4, learning_rate=0.1, warmup_steps=3)
VARIANTS = [TRAINING, TRAINING.model_copy(update={"accumulation": 2, "average": 0.9})]


class Stopped(Exception):
    pass


def start():
    """Two parameters, the second at half the learning rate, and one that is not trained."""
    module = nn.Module()
    module.slope, module.offset = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    module.fixed = nn.Parameter(torch.ones(1000), requires_grad=False)
    groups = [{"params": [module.slope]}, {"params": [module.offset], "factor": 0.5}]
    return Progress(module, torch.optim.AdamW(groups), "these clips")


def ended(progress, training=TRAINING, checkpoint=None, stop=None, report=lambda step, loss: None, seconds=0.0):
    """The trained parameters; a batch is of its own number alone, and batch `stop` cannot be had."""

    def loss_of(number):
        if number == stop:
            raise Stopped
        x = torch.randn(8, generator=torch.Generator().manual_seed(number))
        module = progress.module
        return (module.slope * x + module.offset - 2 * x - 1).square().mean()

    run(progress, training, loss_of, checkpoint, report, seconds)
    return [progress.module.slope.item(), progress.module.offset.item()]


def interrupted(checkpoint, training=TRAINING, step=50, **options):
    with pytest.raises(Stopped):
        ended(start(), training, checkpoint, step * training.accumulation, **options)


def test_a_training_finds_the_line():
    curve = []
    assert ended(start(), report=lambda *point: curve.append(point)) == pytest.approx([2, 1], abs=0.2)
    assert [step for step, _ in curve] == list(range(2, 101, 2))
    assert curve[-1][1] < 0.1 * curve[0][1]


@pytest.mark.parametrize("training", VARIANTS, ids=str)
@pytest.mark.parametrize("step", [1, 2, 37, 99])
def test_a_resumed_training_ends_bit_for_bit_the_same(tmp_path, training, step):
    checkpoint, curve, whole = tmp_path / "training.pt", [], []
    interrupted(checkpoint, training, step)
    progress = resume(start, checkpoint)
    assert progress.step == step
    resumed = ended(progress, training, checkpoint, report=lambda *point: curve.append(point))
    assert resumed == ended(start(), training, report=lambda *point: whole.append(point))
    assert curve == whole


def test_the_average_is_of_the_weights_on_the_way():
    averaged, last = (ended(start(), TRAINING.model_copy(update={"average": a, "steps": 20})) for a in (0.9, 0.0))
    assert 0 < averaged[0] < last[0]


def test_a_checkpoint_leaves_out_what_is_not_trained(tmp_path):
    interrupted(tmp_path / "training.pt")
    assert torch.load(tmp_path / "training.pt", weights_only=True)["module"].keys() == {"slope", "offset"}


def test_a_checkpoint_is_written_once_its_time_has_come(tmp_path):
    interrupted(tmp_path / "training.pt", seconds=1e6)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None])
def test_a_damaged_checkpoint_means_a_fresh_start(tmp_path, damage, caplog):
    checkpoint = tmp_path / "training.pt"
    interrupted(checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1000] if damage is None else damage)
    assert ended(resume(start, checkpoint)) == ended(start())
    assert "training starts over" in caplog.text


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), OSError("Input/output error")])
def test_a_checkpoint_that_cannot_be_read_now_is_not_thrown_away(tmp_path, monkeypatch, error):
    checkpoint = tmp_path / "training.pt"
    interrupted(checkpoint)

    def fails(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", fails)
        with pytest.raises(type(error)):
            resume(start, checkpoint)
    assert resume(start, checkpoint).step == 50


def test_a_checkpoint_of_other_clips_means_a_fresh_start(tmp_path, caplog):
    interrupted(tmp_path / "training.pt")
    assert resume(lambda: replace(start(), signature="others"), tmp_path / "training.pt").step == 0
    assert "other clips or classes" in caplog.text


def test_a_diverging_training_says_so_and_leaves_no_checkpoint(tmp_path):
    checkpoint = tmp_path / "training.pt"
    with pytest.raises(InputError, match=r"the loss is (inf|nan) at step \d+: training diverged"):
        ended(start(), TRAINING.model_copy(update={"learning_rate": 1e30}), checkpoint)
    assert not checkpoint.exists()


def test_a_checkpoint_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        ended(start(), checkpoint=tmp_path / "gone" / "training.pt")


def test_the_learning_rate_warms_up_and_falls():
    rates = [learning_rate(TRAINING, step) for step in range(TRAINING.steps + 1)]
    assert rates[:3] == pytest.approx([0.1 / 3, 0.2 / 3, 0.1])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-9)
