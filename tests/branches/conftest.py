import numpy as np
import pytest
import torch

from branches.audio.cache import in_memory, open_cache
from branches.beats import BEATs
from branches.data.dataset import read_index

torch.set_num_threads(1)  # tiny networks gain nothing from threads, which on a busy machine wait for each other


@pytest.fixture(scope="session")
def index(dataset):
    return read_index(dataset)


@pytest.fixture(scope="session")
def audio(dataset, index):
    return open_cache(dataset, index, dataset.parent / "audio")


@pytest.fixture(scope="session")
def clips():
    rng = np.random.default_rng(0)
    return in_memory([rng.normal(0, 0.05, (n, 2)).astype(np.float32) for n in (16_000, 9_000, 16_000, 12_345)])


@pytest.fixture
def passes(monkeypatch):
    passes, encode = [], BEATs.encode
    monkeypatch.setattr(BEATs, "encode", lambda self, *a: passes.append(len(a[0])) or encode(self, *a))
    return passes


@pytest.fixture
def tf32_elsewhere(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")
