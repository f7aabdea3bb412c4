import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from branches.audio.cache import in_memory
from branches.beats import BEATs, load_beats, save_beats
from branches.beats.checkpoint import random_beats
from branches.beats.config import TINY
from branches.model import BranchModel, batches_of_like_length, load_branch, save_branch
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
def test_one_pass_gives_each_embedding_what_a_clip_would_get_alone(strategy, monkeypatch):
    rng, passes, encode = np.random.default_rng(0), [], BEATs.encode
    clips = in_memory([rng.normal(0, 0.05, (n, 2)).astype(np.float32) for n in (16_000, 9_000, 16_000, 12_345)])
    model = trained(strategy=strategy, pooling="band_mean", backbone={"layers": [1]})
    monkeypatch.setattr(BEATs, "encode", lambda self, *a: passes.append(len(a[0])) or encode(self, *a))
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


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    save_branch(BranchModel(spec()), path := tmp_path_factory.mktemp("branch") / "branch.pt")
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(spec='{"wings": 2}'), r"the spec in it is of another version of tutti \(1 errors\)$"),
        (lambda c: c.pop("changed"), "no trained branch of this version of tutti$"),
        (lambda c: c["changed"].pop("projection.bias"), r"missing key projection\.bias$"),
        (lambda c: c["changed"].update(extra=torch.ones(1)), "unexpected key extra$"),
    ],
)
def test_what_is_wrong_with_a_branch_is_named_with_its_file(saved, tmp_path, change, message):
    content = torch.load(saved, weights_only=True)
    change(content)
    torch.save(content, tmp_path / "changed.pt")
    with pytest.raises(InputError, match=rf"^{tmp_path}/changed\.pt: {message}"):
        load_branch(tmp_path / "changed.pt")
    with pytest.raises(InputError, match=r"absent\.pt: cannot be read \(No such file or directory\)"):
        load_branch(tmp_path / "absent.pt")


@settings(max_examples=30, deadline=None)
@given(kept=st.floats(0, 0.99), behind=st.binary(max_size=100))
def test_a_file_that_is_no_branch_is_named_in_one_line(saved, kept, behind):
    content, other = saved.read_bytes(), saved.with_name("other.pt")
    other.write_bytes(content[: int(kept * len(content))] + behind)
    with pytest.raises(InputError, match=rf"^{other}: (not|it) [^\n]+$"):
        load_branch(other)
