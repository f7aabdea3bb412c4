import numpy as np
import pytest
import torch

from branches.audio.cache import in_memory
from branches.frontend import fbank
from branches.model import BranchModel
from branches.spec import BranchSpec, PatchesSpec
from scoring.errors import InputError
from tests.embedded import embedded

MODEL = BranchModel(BranchSpec.model_validate({"backbone": "log_mel", "strategy": "frozen"}))


def test_the_statistics_of_each_clip_are_means_and_deviations_of_64_bands():
    rng, wanted = np.random.default_rng(0), PatchesSpec.model_validate({"pooling": "band_statistics"})
    clips = [rng.normal(0, 0.01, (n, 2)).astype(np.float32) for n in (16_000, 20_000)]
    (statistics,) = embedded(MODEL, in_memory(clips), embeddings=[wanted])
    for clip, made in zip(clips, statistics.reshape(2, 8, 2, 8), strict=True):
        bands = fbank(torch.from_numpy(clip[:, 0].copy())[None])[0].numpy().reshape(-1, 64, 2).mean(axis=2)
        np.testing.assert_allclose(made[:, 0].ravel(), bands.mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(made[:, 1].ravel(), bands.std(axis=0), atol=1e-4)


def test_log_mels_have_no_layers():
    with pytest.raises(InputError, match=r"layers \[1\]: log_mel has one output, -1"):
        MODEL.embeddings(torch.randn(2, 64, 128), None, [PatchesSpec(layers=(1,))])
