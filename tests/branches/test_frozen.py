import numpy as np
import pytest
import torch

from branches.audio.cache import open_cache
from branches.beats import BEATs
from branches.data.dataset import read_index
from branches.data.synthetic import SyntheticSize, write_dataset
from branches.frozen import frozen_embeddings
from branches.model import BranchModel
from branches.spec import PROJECTION, BranchSpec, PatchesSpec
from scoring.errors import InputError
from tests.embedded import embedded


def spec(**settings):
    return BranchSpec.model_validate({"strategy": "frozen", "pooling": "mean", **settings})


SPECS = [
    spec(),
    spec(pooling={"name": "relative_deviation", "gamma": 4}),
    spec(pooling="band_mean", backbone={"layers": [0]}),
    spec(pooling="generalised_mean", backbone={"layers": [1, -1]}),
    spec(backbone={"layers": [0, 1, 2], "combine": "mean"}),
]


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    root = tmp_path_factory.mktemp("frozen")
    write_dataset(root / "data", SyntheticSize(4, 2, 1, 1.0), machines=["rotor"])
    write_dataset(root / "more", SyntheticSize(3, 2, 1, 1.6), machines=["valve"])
    (root / "more" / "valve").rename(root / "data" / "valve")
    return open_cache(root / "data", read_index(root / "data"), root / "cache")


def inputs(*specs):
    return [i for s in specs for i in s.frozen_inputs([PROJECTION])]


@pytest.mark.parametrize("one", SPECS, ids=lambda s: f"{s.pooling.name}{s.backbone.layers}")
def test_one_pass_gives_each_branch_what_it_would_get_alone(audio, one, tmp_path):
    (wanted,) = inputs(one)
    together = frozen_embeddings(wanted, inputs(*SPECS), audio, tmp_path / "all", "cpu")
    np.testing.assert_allclose(together, embedded(BranchModel(one), audio, batch_size=1)[0], atol=2e-5)
    torch.manual_seed(1)
    assert np.array_equal(together, frozen_embeddings(wanted, [], audio, tmp_path / "one", "cpu"))


def test_the_backbone_runs_once_for_all_that_share_it(audio, tmp_path, monkeypatch):
    heard = []
    encode = BEATs.encode
    monkeypatch.setattr(BEATs, "encode", lambda self, *a: heard.append(len(a[0])) or encode(self, *a))
    wanted = inputs(*SPECS, spec(channel="far"))
    made = [frozen_embeddings(one, wanted, audio, tmp_path, "cpu") for one in wanted]
    assert sum(heard) == 2 * len(audio)  # near and far
    assert not np.allclose(made[0], made[-1], atol=1e-3)
    for one, embeddings in zip(wanted, made, strict=True):
        np.testing.assert_array_equal(embeddings, frozen_embeddings(one, [], audio, tmp_path, "cpu"))
    assert sum(heard) == 2 * len(audio)
    assert not list(tmp_path.glob("*.tmp"))


def test_a_layer_that_is_not_there_is_named(audio, tmp_path):
    for made in (lambda s: frozen_embeddings(*inputs(s), [], audio, tmp_path, "cpu"), BranchModel):
        with pytest.raises(InputError, match="this BEATs has outputs 0 to 2"):
            made(spec(backbone={"layers": [3]}))


def test_pseudo_labels_need_a_plain_mean_of_the_last_layer():
    lora = BranchSpec.model_validate({"classes": {"pseudo_labels": 4}, "backbone": {"layers": [0]}, "channel": "far"})
    mean = PatchesSpec.model_validate({"pooling": "mean"})
    assert inputs(lora) == [(spec(channel="far"), mean)]
    assert inputs(BranchSpec()) == []


def test_the_folder_is_made(audio, tmp_path):
    (wanted,) = inputs(SPECS[0])
    assert len(frozen_embeddings(wanted, [], audio, tmp_path / "new" / "folder", "cpu")) == len(audio)


def test_another_node_s_embeddings_take_the_place_of_ours(audio, tmp_path):
    (wanted,) = inputs(SPECS[0])
    other = np.full_like(frozen_embeddings(wanted, [], audio, tmp_path / "one", "cpu"), 7)
    shared = frozen_embeddings(wanted, [], audio, tmp_path / "two", "cpu", lambda path: np.save(path, other))
    np.testing.assert_array_equal(shared, other)


def test_a_frozen_backbone_computes_in_the_precision_that_is_asked_for(audio, tmp_path):
    both = inputs(*(spec(backbone={"precision": p}) for p in ("float32", "bfloat16")))
    made = [frozen_embeddings(one, both, audio, tmp_path, "cpu") for one in both]
    assert 0 < np.abs(made[0] - made[1]).max() < 0.05 * np.abs(made[0]).max()
