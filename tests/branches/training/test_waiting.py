"""A training step on a GPU must not make the host wait for it. PyTorch's meta device stands for the GPU here.

Its tensors have no values: what reads one (`item`, a condition, a choice by a mask) raises, as it would wait on a GPU.
"""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from branches.spec import BranchSpec
from branches.training.batches import Batch
from branches.training.finetuning import FineTuning
from branches.training.loop import _descend

META = torch.device("meta")


class NoWaitingCopies(TorchDispatchMode):
    """Copies from the host must come from pinned memory and not be waited for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].device.type == "cpu" and kwargs.get("device") == META:
            assert kwargs.get("non_blocking"), "a copy that waits"
        return func(*args, **kwargs)


@pytest.fixture
def no_autocast(monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: contextlib.nullcontext())  # it does not know the device
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)  # which needs a driver


@pytest.mark.parametrize(
    "read", [torch.Tensor.item, bool, lambda x: x[x > 0], torch.nonzero, torch.Tensor.cpu, torch.Tensor.tolist]
)
def test_what_would_wait_is_noticed(read):
    with pytest.raises((RuntimeError, NotImplementedError)):
        read(torch.zeros((), device=META) if read in (bool, torch.Tensor.item) else torch.zeros(3, device=META))


def test_a_copy_that_waits_is_noticed():
    with NoWaitingCopies(), pytest.raises(AssertionError, match="waits"):
        torch.zeros(3).to(META)


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "subcluster_adacos", "masked_prediction": {}, "pooling": "attentive_statistics"},
        {"objective": "subcenter_arcface", "strategy": {"name": "lora", "rank": 4}, "pooling": "relative_deviation"},
        {"objective": "arcface", "strategy": {"name": "partial", "layers": 1}, "pooling": "band_mean"},
        {"objective": "softmax", "strategy": "head", "pooling": "band_statistics"},
    ],
    ids=lambda s: s["objective"],
)
@pytest.mark.parametrize("mixup", [None, {}])
def test_a_step_reads_nothing_from_the_device(settings, mixup, no_autocast):
    augmentation = {"time_mask": 8, "frequency_mask": 8, "mixup": mixup}
    training = {"steps": 5, "batch_size": 4, "average": 0.9, "accumulation": 2}
    spec = BranchSpec.model_validate(
        {"embedding_dim": 8, "training": training, "augmentation": augmentation, **settings}
    )
    parts = FineTuning(spec, SimpleNamespace(n_classes=3, unattributed=np.zeros(3, bool))).to(META).train()
    progress = parts.progress()
    progress.averaged = [p.detach().clone() for p in progress.trained]
    rng = np.random.default_rng(0)
    clips = [rng.normal(size=n).astype(np.float32) for n in (9_600, 9_600, 9_000)]
    batch = Batch(clips, np.array([0, 1, 2, 0]), [rng.normal(size=(58, 128)).astype(np.float32)])
    for _ in range(2):
        with NoWaitingCopies() if progress.step else contextlib.nullcontext():  # the first step puts tables there
            assert _descend(progress, spec.training, lambda number: parts(batch)).device == META
        progress.step += 1
