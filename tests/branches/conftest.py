import pytest
import torch

from branches.audio.cache import open_cache
from branches.data.dataset import read_index

torch.set_num_threads(1)  # tiny networks gain nothing from threads, which on a busy machine wait for each other


@pytest.fixture(scope="session")
def index(dataset):
    return read_index(dataset)


@pytest.fixture(scope="session")
def audio(dataset, index):
    return open_cache(dataset, index, dataset.parent / "audio")
