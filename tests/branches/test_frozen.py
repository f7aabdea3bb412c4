from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch

from branches.audio import cache, channels
from branches.audio.cache import open_cache
from branches.audio.channels import with_cancellation
from branches.frontend import fbank
from branches.frozen import frozen_embeddings
from branches.model import BranchModel
from branches.spec import BranchSpec, PatchesSpec
from scoring.errors import InputError
from tests.embedded import embedded


def wanted(embedding, **settings):
    """An embedding of a frozen branch."""
    return BranchSpec.model_validate({"strategy": "frozen", **settings}), PatchesSpec.model_validate(embedding)


INPUTS = [
    wanted({"pooling": "mean"}),
    wanted({"pooling": {"name": "relative_deviation", "gamma": 4}}),
    wanted({"pooling": "band_statistics", "layers": [1, -1]}),
    wanted({"pooling": "mean", "layers": [0, 1, 2]}),
    wanted({"pooling": "mean"}, channel="far"),
]


def test_one_pass_gives_each_branch_what_it_would_get_alone(clips, tmp_path, passes):
    together = [frozen_embeddings(one, INPUTS, clips, tmp_path / "all", "cpu") for one in INPUTS]
    assert sum(passes) == 2 * len(clips)  # near and far
    for one, made in zip(INPUTS, together, strict=True):
        (alone,) = embedded(BranchModel(one[0]), clips, one[0].channel, [one[1]], batch_size=1)
        np.testing.assert_allclose(made, alone, atol=2e-5)
        torch.manual_seed(1)
        assert np.array_equal(made, frozen_embeddings(one, [], clips, tmp_path / "new" / "folder", "cpu"))
    assert {path.suffix for path in (tmp_path / "all").iterdir()} == {".npy", ".lock"}


def test_log_mel_gives_the_means_and_deviations_of_64_bands_and_has_one_output(clips, tmp_path):
    made = frozen_embeddings(wanted({"pooling": "band_statistics"}, backbone="log_mel"), [], clips, tmp_path, "cpu")
    for clip, statistics in enumerate(made.reshape(4, 8, 2, 8)):
        log_mels = fbank(torch.from_numpy(clips.waveform(clip, "near"))[None])[0].numpy()
        bands = log_mels.reshape(-1, 64, 2).mean(axis=2)
        np.testing.assert_allclose(statistics[:, 0].ravel(), bands.mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(statistics[:, 1].ravel(), bands.std(axis=0), atol=1e-4)
    with pytest.raises(InputError, match=r"layers \[1\]: log_mel has one output, -1"):
        frozen_embeddings(wanted({"layers": [1]}, backbone="log_mel"), [], clips, tmp_path, "cpu")


def test_another_node_s_embeddings_take_the_place_of_ours(clips, tmp_path):
    shared = frozen_embeddings(INPUTS[0], [], clips, tmp_path, "cpu", lambda path: np.save(path, np.full((4, 64), 7)))
    np.testing.assert_array_equal(shared, np.full((4, 64), 7))


def test_a_frozen_backbone_computes_in_the_precision_that_is_asked_for(clips, tmp_path):
    both = [wanted({}, backbone={"precision": p}) for p in ("float32", "bfloat16")]
    made = [frozen_embeddings(one, both, clips, tmp_path, "cpu") for one in both]
    assert 0 < np.abs(made[0] - made[1]).max() < 0.05 * np.abs(made[0]).max()


def test_what_branches_share_is_computed_once_on_a_node(dataset, index, tmp_path, monkeypatch, passes):
    """Locks of files hold between threads as they do between processes."""
    done, index, together = [], index.slice(0, 12), Barrier(4)
    for module, name in ((cache, "read_clip"), (channels, "_cancelled")):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, f=function, n=name: done.append(n) or f(*a))

    def start(number):
        together.wait(60)
        audio = with_cancellation(open_cache(dataset, index, tmp_path / "clips"), tmp_path / "derived")
        return frozen_embeddings(INPUTS[number % 2], INPUTS[:2], audio, tmp_path / "derived", "cpu")

    with ThreadPoolExecutor(4) as branches:
        made = list(branches.map(start, range(4)))
    assert sorted(done) == ["_cancelled"] + ["read_clip"] * 12
    assert sum(passes) == 12
    assert np.array_equal(made[0], made[2])
    assert np.array_equal(made[1], made[3])
