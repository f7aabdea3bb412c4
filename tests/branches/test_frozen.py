import numpy as np
import pytest
import torch

from branches import frozen
from branches.audio.cache import open_cache
from branches.beats import load_beats
from branches.data.dataset import read_index
from branches.data.synthetic import SyntheticSize, write_dataset
from branches.frozen import View, embed_views, frozen_embeddings, view_of
from branches.model import BranchModel, embed
from branches.spec import BranchSpec
from scoring.errors import InputError


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


@pytest.mark.parametrize("one", SPECS, ids=lambda s: f"{s.pooling.name}{s.backbone.layers}")
def test_one_pass_gives_each_branch_what_it_would_get_alone(audio, one):
    views = [view_of(s) for s in SPECS]
    together = embed_views(views, audio, "cpu")[SPECS.index(one)]
    np.testing.assert_allclose(together, embed(BranchModel(one), audio, "near", 1), atol=2e-5)
    torch.manual_seed(1)
    assert np.array_equal(together, embed_views([view_of(one)], audio, "cpu")[0])


def test_the_backbone_runs_once_for_all_that_share_it(audio, tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(frozen, "load_beats", lambda *a, **k: loaded.append(a) or load_beats(*a, **k))
    views = [view_of(s) for s in SPECS] + [view_of(spec(channel="far"))]
    found = [frozen_embeddings(view, views, audio, tmp_path, "cpu") for view in views]
    assert len(loaded) == 2  # near and far
    assert not np.allclose(found[0], found[-1], atol=1e-3)
    for view, embeddings in zip(views, found, strict=True):
        np.testing.assert_array_equal(embeddings, frozen_embeddings(view, [], audio, tmp_path, "cpu"))
    assert len(loaded) == 2
    assert not list(tmp_path.glob("*.tmp"))


def test_a_layer_that_is_not_there_is_named(audio):
    for made in (lambda s: embed_views([view_of(s)], audio, "cpu"), BranchModel):
        with pytest.raises(InputError, match="this BEATs has outputs 0 to 2"):
            made(spec(backbone={"layers": [3]}))


def test_pseudo_labels_need_a_plain_mean_of_the_last_layer():
    lora = BranchSpec.model_validate({"classes": {"pseudo_labels": 4}, "backbone": {"layers": [0]}, "channel": "far"})
    assert view_of(lora) == View.model_validate({"backbone": {}, "channel": "far", "pooling": "mean"})
    assert view_of(BranchSpec()) is None


def test_the_folder_is_made(audio, tmp_path):
    assert len(frozen_embeddings(view_of(SPECS[0]), [], audio, tmp_path / "new" / "folder", "cpu")) == len(audio)


def test_another_node_s_embeddings_take_the_place_of_ours(audio, tmp_path):
    view = view_of(SPECS[0])
    other = np.full_like(frozen_embeddings(view, [], audio, tmp_path / "one", "cpu"), 7)
    shared = frozen_embeddings(view, [], audio, tmp_path / "two", "cpu", lambda path: np.save(path, other))
    np.testing.assert_array_equal(shared, other)


def test_a_frozen_backbone_computes_in_the_precision_that_is_asked_for(audio, tmp_path):
    exact, coarse = (view_of(spec(backbone={"precision": p})) for p in ("float32", "bfloat16"))
    made = [frozen_embeddings(view, [exact, coarse], audio, tmp_path, "cpu") for view in (exact, coarse)]
    assert 0 < np.abs(made[0] - made[1]).max() < 0.05 * np.abs(made[0]).max()
