import errno
import re
from dataclasses import replace
from functools import partial
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from branches.spec import TrainingSpec
from branches.training.loop import Progress, learning_rate, resume, run
from scoring.errors import InputError

TRAINING = TrainingSpec(steps=20, batch_size=4, learning_rate=0.1, warmup_steps=3)
AVERAGED = TRAINING.model_copy(update={"accumulation": 2, "average": 0.9})


def start():
    """Two parameters, the second at half the learning rate, and one that is not trained."""
    module = nn.Module()
    module.slope, module.offset = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    module.fixed = nn.Parameter(torch.ones(1000), requires_grad=False)
    groups = [{"params": [module.slope]}, {"params": [module.offset], "factor": 0.5}]
    return Progress(module, torch.optim.AdamW(groups), "these clips")


def loss_of(module, number):
    x = torch.randn(8, generator=torch.Generator().manual_seed(number))
    return (module.slope * x + module.offset - 2 * x - 1).square().mean()


def ended(progress, training=TRAINING, checkpoint=None, reports=1_000, seconds=0.0):
    """The trained parameters and the curve; after so many reports the next one raises."""
    curve, left = [], iter(range(reports))
    losses = partial(loss_of, progress.module)
    run(progress, training, losses, checkpoint, lambda *point: curve.append((next(left), *point)), seconds)
    return [progress.module.slope.item(), progress.module.offset.item()], curve


def interrupted(checkpoint, training=TRAINING, step=10):
    with pytest.raises(StopIteration):
        ended(start(), training, checkpoint, reports=step)
    return checkpoint


def test_a_training_finds_the_line_and_reports_fifty_times():
    found, curve = ended(start(), TRAINING.model_copy(update={"steps": 101}))
    assert found == pytest.approx([2, 1], abs=0.2)
    assert [step for _, step, _ in curve] == [*range(2, 101, 2), 101]


@pytest.mark.parametrize("training", [TRAINING, AVERAGED], ids=["plain", "accumulated and averaged"])
@pytest.mark.parametrize("step", [1, 7, 19])
def test_a_resumed_training_ends_bit_for_bit_the_same(tmp_path, training, step):
    checkpoint = interrupted(tmp_path / "training.pt", training, step)
    saved = torch.load(checkpoint, weights_only=True)
    assert (saved["step"], saved["module"].keys()) == (step, {"slope", "offset"})
    assert ended(resume(start, checkpoint), training) == ended(start(), training)


def test_steps_are_those_of_adamw_with_cut_gradients_and_averages_forget_the_start():
    plain, averages = start(), torch.zeros(2)
    for step in range(TRAINING.steps):
        for group, factor in zip(plain.optimizer.param_groups, (1.0, 0.5), strict=True):
            group["lr"] = factor * learning_rate(TRAINING, step)
        plain.optimizer.zero_grad()
        loss_of(plain.module, step).backward()
        norm = torch.cat([p.grad for p in plain.trained]).norm()
        for parameter in plain.trained:
            parameter.grad /= norm.clamp(min=1.0)
        plain.optimizer.step()
        decay = min(0.9, (1 + step) / (10 + step))
        averages = decay * averages + (1 - decay) * torch.cat([p.detach() for p in plain.trained])
    assert ended(start())[0] == pytest.approx([p.item() for p in plain.trained], rel=1e-4)
    averaged, _ = ended(start(), TRAINING.model_copy(update={"average": 0.9}))
    assert averaged == pytest.approx(averages.tolist(), rel=1e-4)


def test_the_learning_rate_warms_up_and_falls_as_half_a_cosine():
    rates = [learning_rate(TRAINING, step) for step in range(TRAINING.steps + 1)]
    assert rates[:4] == pytest.approx([0.1 / 3, 0.2 / 3, 0.1, 0.1])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert [rates[11] + rates[12], rates[-1]] == pytest.approx([0.1, 0], abs=1e-9)


def test_a_checkpoint_is_written_once_its_time_has_come_and_removed_when_the_training_diverges(tmp_path):
    ended(start(), checkpoint=tmp_path / "training.pt", seconds=1e6)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        ended(start(), checkpoint=tmp_path / "gone" / "training.pt")
    progress, diverging = resume(start, interrupted(tmp_path / "training.pt")), {"learning_rate": 1e30}
    with pytest.raises(InputError, match=r"the loss is (inf|nan) at step 11: training diverged; lower the learning"):
        ended(progress, TRAINING.model_copy(update=diverging), tmp_path / "training.pt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kept", [0, 100, -1000])
@pytest.mark.parametrize("behind", [b"", b"no checkpoint", bytes(30_000)], ids=len)
def test_a_damaged_checkpoint_and_one_of_other_clips_mean_a_fresh_start(tmp_path, kept, behind, caplog):
    checkpoint = interrupted(tmp_path / "training.pt")
    assert resume(lambda: replace(start(), signature="others"), checkpoint).step == 0
    assert "it belongs to a training on other clips or classes" in caplog.text
    checkpoint.write_bytes(checkpoint.read_bytes()[:kept] + behind)
    caplog.clear()
    assert ended(resume(start, checkpoint)) == ended(start())
    assert re.search(f"checkpoint {checkpoint} cannot be used .*; training starts over", caplog.text)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), MemoryError(), OSError(errno.EIO, "Input/output error")])
def test_a_checkpoint_that_cannot_be_read_now_is_not_thrown_away(tmp_path, monkeypatch, error):
    checkpoint = interrupted(tmp_path / "training.pt")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", Mock(side_effect=error))
        with pytest.raises(type(error)):
            resume(start, checkpoint)
    assert resume(start, checkpoint).step == 10
