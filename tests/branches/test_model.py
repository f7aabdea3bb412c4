import hashlib

import numpy as np
import pytest
import torch

from branches.audio.cache import open_cache
from branches.beats import BEATs, load_beats, save_beats
from branches.beats.checkpoint import random_beats
from branches.beats.config import TINY
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
    changed = torch.load(tmp_path / "branch.pt", weights_only=True)["changed"]
    assert changed.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    save_branch(loaded, tmp_path / "again.pt")
    assert (tmp_path / "again.pt").read_bytes() == (tmp_path / "branch.pt").read_bytes()


def test_a_branch_s_network_is_another_one_s_backbone(tmp_path):
    model = BranchModel(spec(strategy={"name": "lora", "rank": 2}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) * parameter.requires_grad)
    save_branch(model.eval(), tmp_path / "branch.pt")
    with pytest.raises(InputError, match=r"it is a trained branch; save_beats\(load_branch\(FILE\)\.beats"):
        load_beats(tmp_path / "branch.pt")
    save_beats(load_branch(tmp_path / "branch.pt").beats, tmp_path / "my.pt")
    features = torch.randn(2, 64, 128)
    expected, untrained = (m.encode(features)[0] for m in (model.beats, load_beats("tiny")))
    torch.testing.assert_close(
        BranchModel(spec(backbone=str(tmp_path / "my.pt"))).eval().beats.encode(features)[0], expected
    )
    assert not torch.allclose(expected, untrained, atol=1e-2)


def test_a_branch_finds_its_backbone_where_it_lies_now_and_no_other(tmp_path):
    old, new = tmp_path / "old.pt", tmp_path / "new.pt"
    save_beats(load_beats("tiny"), old)
    backbone = {"path": str(old), "sha256": hashlib.sha256(old.read_bytes()).hexdigest()}
    model = BranchModel(spec(backbone=backbone, strategy="head")).eval()
    save_branch(model, tmp_path / "branch.pt")
    old.rename(new)
    with pytest.raises(InputError, match=r"old\.pt: no such file"):
        load_branch(tmp_path / "branch.pt")
    features = torch.randn(2, 64, 128)
    assert torch.equal(load_branch(tmp_path / "branch.pt", str(new))(features, None), model(features, None))
    save_beats(random_beats(TINY, seed=1), new)
    with pytest.raises(InputError, match=r"new\.pt has sha256"):
        load_branch(tmp_path / "branch.pt", str(new))


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(spec='{"wings": 2}'), "the spec in it is of another version"),
        (lambda c: c.pop("changed"), "no trained branch of this version of tutti"),
        (lambda c: c["changed"].pop("projection.bias"), r"missing key projection\.bias"),
        (lambda c: c["changed"].update(extra=torch.ones(1)), "unexpected key extra"),
    ],
)
def test_what_is_wrong_with_a_branch_is_named_with_its_file(tmp_path, change, message):
    save_branch(BranchModel(spec()), tmp_path / "branch.pt")
    content = torch.load(tmp_path / "branch.pt", weights_only=True)
    change(content)
    torch.save(content, tmp_path / "changed.pt")
    with pytest.raises(InputError, match=rf"changed\.pt: {message}"):
        load_branch(tmp_path / "changed.pt")
    with pytest.raises(InputError, match=r"absent\.pt: cannot be read"):
        load_branch(tmp_path / "absent.pt")
