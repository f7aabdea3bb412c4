import hashlib

import numpy as np
import pytest
import torch

from branches.beats import load_beats, save_beats
from branches.beats.checkpoint import random_beats
from branches.beats.config import TINY
from branches.model import BranchModel, batches_of_like_length, load_branch, save_branch
from branches.pooling import Pooling
from branches.spec import PROJECTION, BranchSpec, PatchesSpec
from scoring.errors import InputError
from tests.embedded import embedded

FEATURES = torch.randn(2, 64, 128, generator=torch.Generator().manual_seed(0))
TAKEN = [
    PROJECTION,
    PatchesSpec.model_validate({"pooling": {"name": "relative_deviation", "gamma": 4}}),
    PatchesSpec.model_validate({"layers": [0], "pooling": "band_statistics"}),
    PatchesSpec.model_validate({"layers": [1, -1], "pooling": "mean"}),
]
POOLINGS = ["mean", "attentive_statistics", "band_mean", "band_statistics", "relative_deviation"]
LORA = {"name": "lora", "rank": 2}


def spec(**settings):
    return BranchSpec.model_validate({"embedding_dim": 8, **settings})


def trained(**settings):
    """A branch whose trained parameters are no longer those that it began with."""
    torch.manual_seed(0)
    model = BranchModel(spec(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter) * parameter.requires_grad)
    return model.eval()


@pytest.mark.parametrize("strategy", ["full", LORA], ids=str)
def test_one_pass_gives_each_embedding_what_a_clip_would_get_alone(strategy, clips, passes):
    model = trained(strategy=strategy, pooling="band_mean", backbone={"layers": [1]})
    together = embedded(model.train(), clips, embeddings=TAKEN)
    assert sum(passes) == len(clips)
    assert [made.shape for made in together] == [(4, 8, 8), (4, 8, 64), (4, 8, 128), (4, 128)]
    for embedding, made in zip(TAKEN, together, strict=True):
        np.testing.assert_allclose(made, embedded(model, clips, embeddings=[embedding], batch_size=1)[0], atol=2e-4)
    assert not np.allclose(together[0], embedded(model, clips, "far")[0], atol=1e-3)


@pytest.mark.parametrize(("pooling", "shape"), [("band_mean", (2, 8, 8)), ("attentive_statistics", (2, 8))])
def test_an_embedding_is_of_the_head_or_of_the_patches_before_it(pooling, shape):
    model = trained(pooling=pooling, backbone={"layers": [1, 2]})
    patches, _ = model.beats.encode(FEATURES, layers=[1, 2])
    expected = model.projection(model.pooling(patches, None))
    assert expected.shape == shape
    torch.testing.assert_close(model(FEATURES, None), expected)
    of_head, of_patches = model.embeddings(FEATURES, None, [PROJECTION, TAKEN[-1]])
    torch.testing.assert_close(of_head, expected)
    torch.testing.assert_close(of_patches, patches.mean(1))
    (frozen,) = BranchModel(spec(strategy="frozen")).embeddings(FEATURES, None, TAKEN[-1:])
    torch.testing.assert_close(frozen, load_beats("tiny").encode(FEATURES, layers=[1, -1])[0].mean(1))
    with pytest.raises(InputError, match="this BEATs has outputs 0 to 2"):
        BranchModel(spec(backbone={"layers": [3]}))


@pytest.mark.parametrize(
    ("seconds", "largest"), [([1] * 40, 32), ([10] * 40, 32), ([30] * 20, 3), ([1] * 40 + [60] * 3, 32), ([600, 5], 1)]
)
def test_batches_hold_every_clip_once_and_what_attention_allows(seconds, largest):
    batches = list(batches_of_like_length(np.array(seconds) * 16_000, 32))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(seconds)))
    for rows in batches:
        assert len(rows) == 1 or len(rows) * max(10, max(seconds[i] for i in rows)) ** 2 <= 32 * 10**2
    assert max(len(rows) for rows in batches) == largest


@pytest.mark.parametrize("strategy", ["head", "full", {"name": "partial", "layers": 1}, LORA], ids=str)
def test_a_saved_branch_is_loaded_as_it_was(tmp_path, strategy):
    model = trained(strategy=strategy, pooling="band_mean")
    save_branch(model, tmp_path / "branch.pt")
    state, loaded = torch.get_rng_state(), load_branch(tmp_path / "branch.pt")
    assert torch.equal(state, torch.get_rng_state())
    assert (loaded.spec, loaded.training) == (model.spec, False)
    assert torch.equal(loaded(FEATURES, None), model(FEATURES, None))
    changed = torch.load(tmp_path / "branch.pt", weights_only=True)["changed"]
    assert changed.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    save_branch(loaded, tmp_path / "again.pt")
    assert (tmp_path / "again.pt").read_bytes() == (tmp_path / "branch.pt").read_bytes()
    # Its network may be another branch's backbone.
    with pytest.raises(InputError, match=r"it is a trained branch; save_beats\(load_branch\(FILE\)\.beats"):
        load_beats(tmp_path / "branch.pt")
    save_beats(loaded.beats, tmp_path / "my.pt")
    torch.testing.assert_close(load_beats(tmp_path / "my.pt").encode(FEATURES), model.beats.encode(FEATURES))


def test_a_branch_finds_its_backbone_where_it_lies_now_and_no_other(tmp_path):
    old, new, branch = (tmp_path / f"{name}.pt" for name in ("old", "new", "branch"))
    save_beats(random_beats(TINY, seed=2), old)
    backbone = {"path": str(old), "sha256": hashlib.sha256(old.read_bytes()).hexdigest()}
    model = trained(backbone=backbone, strategy="head")
    save_branch(model, branch)
    old.rename(new)
    with pytest.raises(InputError, match=r"old\.pt: no such file"):
        load_branch(branch)
    assert torch.equal(load_branch(branch, str(new))(FEATURES, None), model(FEATURES, None))
    save_beats(random_beats(TINY, seed=1), new)
    with pytest.raises(InputError, match=r"new\.pt has sha256"):
        load_branch(branch, str(new))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_branch_embeds_in_its_precision_and_never_in_tf32(precision, monkeypatch):
    """However it was trained: on a GPU the encoder trains in bfloat16, and convolutions use TF32 by default."""
    model, seen = BranchModel(spec(backbone={"precision": precision}), train_in_bfloat16=True), []

    def tf32():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    for layer in (model.backbone.layers[0].fc1, model.projection):
        layer.register_forward_hook(lambda *a: seen.append((a[-1].dtype, *tf32())))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.set_float32_matmul_precision("medium")
    try:
        model.train()(FEATURES, None)
        trained = [torch.bfloat16, torch.float32]
        model.eval()(FEATURES, None)
        model.embeddings(FEATURES, None, [PROJECTION])
        assert tf32() == ("medium", True)
    finally:
        torch.set_float32_matmul_precision("highest")
    served = [getattr(torch, precision), torch.float32]
    assert seen == [(dtype, "highest", False) for dtype in (*trained, *served, *served)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(spec='{"wings": 2}'), r"the spec in it is of another version of tutti \(1 errors\)$"),
        (lambda c: c.pop("changed"), "no trained branch of this version of tutti$"),
        (lambda c: c["changed"].pop("projection.bias"), r"missing key projection\.bias$"),
        (lambda c: c["changed"].update(extra=torch.ones(1)), "unexpected key extra$"),
    ],
)
def test_what_is_wrong_with_a_branch_is_named_with_its_file(tmp_path, change, message):
    file = tmp_path / "branch.pt"
    save_branch(BranchModel(spec()), file)
    content = torch.load(file, weights_only=True)
    change(content)
    torch.save(content, file)
    with pytest.raises(InputError, match=f"^{file}: {message}"):
        load_branch(file)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(InputError, match=f"^{file}: not a file of tensors saved by torch$"):
        load_branch(file)
    file.unlink()
    with pytest.raises(InputError, match=rf"^{file}: cannot be read \(No such file or directory\)"):
        load_branch(file)


def pooling(name, dim, **settings):
    torch.manual_seed(0)
    return Pooling(spec(pooling={"name": name, **settings}).pooling, dim)


@pytest.mark.parametrize("name", POOLINGS)
def test_padded_patches_have_no_say_and_one_value_everywhere_has_a_gradient(name):
    pool = pooling(name, 12)
    patches, padding = torch.randn(2, 64, 12), torch.zeros(2, 64, dtype=torch.bool)
    padding[1, 32:] = True
    patches[1, 32:] *= 100
    pooled = pool(patches, padding)
    assert pooled.shape == ((2, 8, pool.output_dim) if pool.bands == 8 else (2, pool.output_dim))
    torch.testing.assert_close(pooled[1:], pool(patches[1:, :32], None))
    torch.testing.assert_close(pooled[:1], pool(patches[:1], None))
    for value in (0.0, 1.0):
        patches = torch.full((1, 16, 12), value, requires_grad=True)
        pool(patches, None).sum().backward()
        assert torch.isfinite(patches.grad).all()


def mean_and_deviation(vectors, weights):
    """Of vectors (B, n, …, D) with weights (B, n, …, 1), over n."""
    mean = (weights * vectors).sum(1) / weights.sum(1)
    return mean, ((weights * (vectors - mean[:, None]) ** 2).sum(1) / weights.sum(1)).sqrt()


@pytest.mark.parametrize("gamma", [0, 4])
def test_poolings_follow_their_formulas(gamma):
    patches = torch.randn(3, 40, 5)
    moments, equal = patches.reshape(3, 5, 8, 5), torch.ones(3, 5, 8, 1)
    distance = (moments - moments.mean(1, keepdim=True)).norm(dim=-1, keepdim=True)
    departing = (1 + distance / distance.amax(1, keepdim=True)) ** gamma
    attention = pooling("attentive_statistics", 5).attention(patches).softmax(1)
    expected = {
        "mean": patches.mean(1),
        "attentive_statistics": torch.cat(mean_and_deviation(patches, attention), -1),
        "band_mean": moments.mean(1),
        "band_statistics": torch.cat(mean_and_deviation(moments, equal), -1),
        "relative_deviation": mean_and_deviation(moments, departing)[0],
    }
    for name in POOLINGS:
        pool = pooling(name, 5, **({"gamma": gamma} if name == "relative_deviation" else {}))
        torch.testing.assert_close(pool(patches, None), expected[name], atol=1e-4, rtol=1e-4)
