import numpy as np
import pytest
import torch

from branches.audio.cache import open_cache
from branches.beats import BEATs
from branches.data.dataset import read_index
from branches.data.synthetic import SyntheticSize, write_dataset
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
    wanted({"pooling": "band_mean", "layers": [0]}),
    wanted({"pooling": "band_statistics", "layers": [1, -1]}),
    wanted({"pooling": "mean", "layers": [0, 1, 2]}),
]


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    root = tmp_path_factory.mktemp("frozen")
    write_dataset(root / "data", SyntheticSize(4, 2, 1, 1.0), machines=["rotor"])
    write_dataset(root / "more", SyntheticSize(3, 2, 1, 1.6), machines=["valve"])
    (root / "more" / "valve").rename(root / "data" / "valve")
    return open_cache(root / "data", read_index(root / "data"), root / "cache")


@pytest.mark.parametrize("one", INPUTS, ids=lambda one: f"{one[1].pooling.name}{one[1].layers}")
def test_one_pass_gives_each_branch_what_it_would_get_alone(audio, one, tmp_path):
    together = frozen_embeddings(one, INPUTS, audio, tmp_path / "all", "cpu")
    (alone,) = embedded(BranchModel(one[0]), audio, embeddings=[one[1]], batch_size=1)
    np.testing.assert_allclose(together, alone, atol=2e-5)
    torch.manual_seed(1)
    assert np.array_equal(together, frozen_embeddings(one, [], audio, tmp_path / "one", "cpu"))


def test_the_backbone_runs_once_for_all_that_share_it(audio, tmp_path, monkeypatch):
    heard = []
    encode = BEATs.encode
    monkeypatch.setattr(BEATs, "encode", lambda self, *a: heard.append(len(a[0])) or encode(self, *a))
    inputs = [*INPUTS, wanted({"pooling": "mean"}, channel="far")]
    made = [frozen_embeddings(one, inputs, audio, tmp_path, "cpu") for one in inputs]
    assert sum(heard) == 2 * len(audio)  # near and far
    assert not np.allclose(made[0], made[-1], atol=1e-3)
    for one, embeddings in zip(inputs, made, strict=True):
        np.testing.assert_array_equal(embeddings, frozen_embeddings(one, [], audio, tmp_path, "cpu"))
    assert sum(heard) == 2 * len(audio)
    assert not list(tmp_path.glob("*.tmp"))


def test_a_layer_that_is_not_there_is_named(audio, tmp_path):
    with pytest.raises(InputError, match="this BEATs has outputs 0 to 2"):
        frozen_embeddings(wanted({"layers": [3]}), [], audio, tmp_path, "cpu")
    with pytest.raises(InputError, match="this BEATs has outputs 0 to 2"):
        BranchModel(BranchSpec.model_validate({"backbone": {"layers": [3]}}))


def test_pseudo_labels_need_a_plain_mean_of_the_layer_that_the_branch_listens_to():
    lora = BranchSpec.model_validate({"classes": {"pseudo_labels": {}}, "backbone": {"layers": [0]}, "channel": "far"})
    assert lora.frozen_inputs([]) == [wanted({"pooling": "mean", "layers": [0]}, channel="far")]
    assert BranchSpec().frozen_inputs([]) == []


def test_the_folder_is_made(audio, tmp_path):
    assert len(frozen_embeddings(INPUTS[0], [], audio, tmp_path / "new" / "folder", "cpu")) == len(audio)


def test_another_node_s_embeddings_take_the_place_of_ours(audio, tmp_path):
    other = np.full_like(frozen_embeddings(INPUTS[0], [], audio, tmp_path / "one", "cpu"), 7)
    shared = frozen_embeddings(INPUTS[0], [], audio, tmp_path / "two", "cpu", lambda path: np.save(path, other))
    np.testing.assert_array_equal(shared, other)


def test_a_frozen_backbone_computes_in_the_precision_that_is_asked_for(audio, tmp_path):
    both = [wanted({}, backbone={"precision": p}) for p in ("float32", "bfloat16")]
    made = [frozen_embeddings(one, both, audio, tmp_path, "cpu") for one in both]
    assert 0 < np.abs(made[0] - made[1]).max() < 0.05 * np.abs(made[0]).max()
