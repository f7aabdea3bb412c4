import numpy as np
import pytest
import torch

from branches.audio.cache import open_cache
from branches.beats import BEATs, load_beats
from branches.data.dataset import read_index
from branches.data.synthetic import SyntheticSize, write_dataset
from branches.model import BranchModel, load_branch, save_branch
from branches.spec import PROJECTION, BranchSpec, PatchesSpec
from scoring.errors import InputError
from tests.embedded import embedded


def spec(**settings):
    return BranchSpec.model_validate({"embedding_dim": 8, **settings})


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    root = tmp_path_factory.mktemp("model")
    write_dataset(root / "a", SyntheticSize(3, 1, 1, 1.0), machines=["rotor"])
    write_dataset(root / "b", SyntheticSize(3, 1, 1, 1.7), machines=["valve"])
    (root / "b" / "valve").rename(root / "a" / "valve")
    return open_cache(root / "a", read_index(root / "a"), root / "cache")


def test_embeddings_do_not_depend_on_the_batch(audio):
    torch.manual_seed(0)
    model = BranchModel(spec())
    (together,) = embedded(model, audio)
    np.testing.assert_allclose(together, embedded(model, audio, batch_size=1)[0], atol=1e-4)
    assert together.shape == (len(audio), 8)
    assert not np.allclose(together, embedded(model, audio, "far")[0], atol=1e-3)


@pytest.mark.parametrize(("pooling", "shape"), [("band_mean", (8, 8)), ("mean", (8,)), ("relative_deviation", (8, 8))])
def test_patch_pooling_gives_an_embedding_for_each_band(audio, pooling, shape):
    assert embedded(BranchModel(spec(pooling=pooling)), audio)[0].shape == (len(audio), *shape)


TAKEN = [
    PROJECTION,
    PatchesSpec.model_validate({"pooling": {"name": "relative_deviation", "gamma": 4}}),
    PatchesSpec.model_validate({"layers": [0], "pooling": "band_statistics"}),
    PatchesSpec.model_validate({"layers": [1, -1], "pooling": "mean"}),
]


@pytest.mark.parametrize("strategy", ["full", {"name": "lora", "rank": 2}])
def test_one_pass_gives_each_embedding_what_it_would_get_alone(audio, strategy, monkeypatch):
    torch.manual_seed(0)
    model = BranchModel(spec(strategy=strategy, pooling="band_mean", backbone={"layers": [1]}))
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter) * parameter.requires_grad)
    passes = []
    encode = BEATs.encode
    monkeypatch.setattr(BEATs, "encode", lambda self, *a: passes.append(len(a[0])) or encode(self, *a))
    together = embedded(model, audio, embeddings=TAKEN)
    assert sum(passes) == len(audio)
    for embedding, made in zip(TAKEN, together, strict=True):
        np.testing.assert_allclose(made, embedded(model, audio, embeddings=[embedding], batch_size=1)[0], atol=2e-4)
    assert [made.shape[1:] for made in together] == [(8, 8), (8, 64), (8, 128), (128,)]
    untrained = embedded(BranchModel(spec(strategy="frozen")), audio, embeddings=TAKEN[1:])
    assert not np.allclose(together[1], untrained[0], atol=1e-2)


def test_patches_that_are_taken_are_those_before_the_projection(audio):
    model = BranchModel(spec(pooling="mean"))
    features = torch.randn(2, 64, 128)
    (taken,) = model.eval().embeddings(features, None, [PatchesSpec.model_validate({"pooling": "band_mean"})])
    patches = model.backbone.encode(features)[0]
    torch.testing.assert_close(taken, patches.reshape(2, 4, 8, -1).mean(1))


def test_a_frozen_branch_gives_what_the_backbone_gives():
    features = torch.randn(2, 64, 128)
    (given,) = BranchModel(spec(strategy="frozen")).embeddings(features, None, TAKEN[-1:])
    torch.testing.assert_close(given, load_beats("tiny").encode(features, layers=[1, -1])[0].mean(1))


def test_a_branch_listens_to_the_layers_it_is_told():
    model = BranchModel(spec(backbone={"layers": [1, 2]}))
    assert model.encode(torch.randn(1, 64, 128), None)[0].shape == (1, 32, 128)


STRATEGIES = ["head", "full", {"name": "partial", "layers": 1}, {"name": "lora", "rank": 2}]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_a_saved_branch_is_loaded_as_it_was(tmp_path, strategy):
    torch.manual_seed(0)
    model = BranchModel(spec(strategy=strategy, pooling="band_mean"))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn_like(parameter))
    save_branch(model.eval(), tmp_path / "branch.pt")
    state = torch.get_rng_state()
    loaded = load_branch(tmp_path / "branch.pt")
    assert torch.equal(state, torch.get_rng_state())
    assert loaded.spec == model.spec
    assert not loaded.training
    features = torch.randn(2, 64, 128)
    assert torch.equal(loaded(features, None), model(features, None))
    backbone = load_beats(tmp_path / "branch.pt")
    assert torch.equal(backbone.encode(features)[0], model.backbone.encode(features)[0])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_branch_embeds_after_training_as_it_is_served(tmp_path, precision):
    """However it was trained: on a GPU the encoder trains in bfloat16."""
    torch.manual_seed(0)
    model = BranchModel(spec(backbone={"precision": precision}), train_in_bfloat16=True)
    computed = []
    model.backbone.layers[0].fc1.register_forward_hook(lambda *a: computed.append(a[-1].dtype))
    features = torch.randn(2, 64, 128)
    model.train()(features, None)
    trained = model.eval()(features, None)
    assert computed == [torch.bfloat16, getattr(torch, precision)]
    save_branch(model, tmp_path / "branch.pt")
    assert torch.equal(load_branch(tmp_path / "branch.pt")(features, None), trained)


@pytest.mark.parametrize("frozen", [False, True])
def test_nothing_is_embedded_in_tf32(frozen, monkeypatch):
    """Which products and convolutions may use on a GPU, the latter by default."""
    model = BranchModel(spec(strategy="frozen") if frozen else spec()).eval()
    seen = []
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.set_float32_matmul_precision("medium")
    encode = BEATs.encode
    monkeypatch.setattr(
        BEATs,
        "encode",
        lambda *a: (
            seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)),
            encode(*a),
        )[1],
    )
    try:
        model.embeddings(torch.randn(2, 64, 128), None, TAKEN[1:] if frozen else TAKEN)
        assert seen == [("highest", False)]
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("medium", True)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_what_was_not_trained_is_not_written(tmp_path):
    sizes = {}
    for strategy in ("head", "full"):
        model = BranchModel(spec(strategy=strategy, pooling="mean"))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * parameter.requires_grad)
        save_branch(model, tmp_path / "branch.pt")
        sizes[strategy] = (tmp_path / "branch.pt").stat().st_size
    assert sizes["head"] < 0.1 * sizes["full"]


def test_a_backbone_is_no_branch(tmp_path):
    model = BranchModel(spec())
    save_branch(model, tmp_path / "branch.pt")
    content = torch.load(tmp_path / "branch.pt", weights_only=True)
    torch.save({**content, "branch": {**content["branch"], "spec": '{"wings": 2}'}}, tmp_path / "future.pt")
    with pytest.raises(InputError, match=r"future\.pt: the spec in it is of another version"):
        load_branch(tmp_path / "future.pt")
    del content["branch"]
    torch.save(content, tmp_path / "backbone.pt")
    with pytest.raises(InputError, match=r"backbone\.pt: no branch in this checkpoint"):
        load_branch(tmp_path / "backbone.pt")
