import numpy as np
import pytest
import torch

from branches.audio.cache import in_memory
from branches.frontend import FBANK_STD, fbank
from branches.log_mel import BANDS
from branches.model import BranchModel
from branches.spec import BranchSpec, PatchesSpec
from scoring.errors import InputError
from tests.embedded import embedded

RNG = np.random.default_rng(0)


def noise(level, samples=16_000):
    return RNG.normal(0, level, (samples, 2)).astype(np.float32)


def statistics_of(clips):
    """Mean and deviation by frequency band, (clips, 8, 2, 8), as a branch has them."""
    spec = BranchSpec.model_validate({"backbone": "log_mel", "strategy": "frozen"})
    wanted = PatchesSpec.model_validate({"pooling": "band_statistics"})
    (embeddings,) = embedded(BranchModel(spec), in_memory(clips), embeddings=[wanted])
    return embeddings.reshape(len(clips), 8, 2, 8)


def test_a_clips_statistics_are_its_own():
    clips = [noise(0.01), noise(0.02, 20_000), noise(0.03)]
    np.testing.assert_allclose(statistics_of(clips[1:2])[0], statistics_of(clips)[1], atol=1e-5)


def test_the_level_moves_the_means_and_leaves_the_deviations():
    clip = noise(0.01)
    quiet, loud = statistics_of([clip, 2 * clip])
    moved = (loud - quiet)[:, 0].ravel()
    # One of Kaldi's lowest filters lies between two bins of the spectrum and hears nothing.
    np.testing.assert_allclose(np.sort(moved)[1:], np.log(4) / (2 * FBANK_STD), atol=1e-3)
    np.testing.assert_allclose(loud[:, 1], quiet[:, 1], atol=1e-3)


def test_the_near_channel_alone_is_heard():
    clip, other = noise(0.01), noise(0.05)
    mixed = np.stack([clip[:, 0], other[:, 1]], axis=1)
    np.testing.assert_array_equal(*statistics_of([clip, mixed]))


def test_the_statistics_are_means_and_deviations_of_64_bands():
    clip = noise(0.01)
    log_mels = fbank(torch.from_numpy(clip[:, 0].copy())[None])[0].numpy().reshape(-1, BANDS, 2).mean(axis=2)
    (statistics,) = statistics_of([clip])
    np.testing.assert_allclose(statistics[:, 0].ravel(), log_mels.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(statistics[:, 1].ravel(), log_mels.std(axis=0), atol=1e-4)


def test_log_mels_have_no_layers():
    model = BranchModel(BranchSpec.model_validate({"backbone": "log_mel", "strategy": "frozen"}))
    with pytest.raises(InputError, match=r"layers \[1\]: log_mel has one output, -1"):
        model.embeddings(torch.randn(2, 64, 128), None, [PatchesSpec(layers=(1,))])
