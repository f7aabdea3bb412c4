import hashlib
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch

from branches.audio import cache, channels
from branches.beats import load_beats, save_beats
from branches.beats.checkpoint import random_beats
from branches.beats.config import TINY
from branches.frontend import fbank
from branches.frozen import frozen_embeddings
from branches.model import BranchModel, batches_of_like_length, load_branch, save_branch
from branches.pooling import Pooling
from branches.spec import PROJECTION, BranchSpec, PatchesSpec
from scoring.errors import InputError
from tests.gpu.checks import embedded

FEATURES = torch.randn(2, 64, 128, generator=torch.Generator().manual_seed(0))
PATCHES = [
    PatchesSpec.model_validate({"pooling": {"name": "relative_deviation", "gamma": 4}}),
    PatchesSpec.model_validate({"layers": [0], "pooling": "band_statistics"}),
    PatchesSpec.model_validate({"layers": [1, -1], "pooling": "mean"}),
]
LORA = {"name": "lora", "rank": 2}


def spec(**settings):
    return BranchSpec.model_validate({"embedding_dim": 8, **settings})


def trained(**settings):
    torch.manual_seed(0)
    model = BranchModel(spec(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter) * parameter.requires_grad)
    return model.eval()


@pytest.mark.parametrize("strategy", ["full", LORA], ids=str)
def test_one_pass_gives_each_embedding_what_a_clip_would_get_alone(strategy, clips, passes):
    model = trained(strategy=strategy, pooling="band_mean", backbone={"layers": [1]})
    together = embedded(model.train(), clips, embeddings=[PROJECTION, *PATCHES])
    assert sum(passes) == len(clips)
    assert [made.shape for made in together] == [(4, 8, 8), (4, 8, 64), (4, 8, 128), (4, 128)]
    for embedding, made in zip([PROJECTION, *PATCHES], together, strict=True):
        np.testing.assert_allclose(made, embedded(model, clips, embeddings=[embedding], batch_size=1)[0], atol=2e-4)
    assert not np.allclose(together[0], embedded(model, clips, "far")[0], atol=1e-3)


@pytest.mark.parametrize(("pooling", "shape"), [("band_mean", (2, 8, 8)), ("attentive_statistics", (2, 8))])
def test_an_embedding_is_of_the_head_or_of_the_patches_before_it(pooling, shape):
    model = trained(pooling=pooling, backbone={"layers": [1, 2]})
    patches, _ = model.beats.encode(FEATURES, layers=[1, 2])
    expected = model.projection(model.pooling(patches, None))
    assert expected.shape == shape
    torch.testing.assert_close(model(FEATURES, None), expected)
    of_head, of_patches = model.embeddings(FEATURES, None, [PROJECTION, PATCHES[-1]])
    torch.testing.assert_close(of_head, expected)
    torch.testing.assert_close(of_patches, patches.mean(1))
    (frozen,) = BranchModel(spec(strategy="frozen")).embeddings(FEATURES, None, PATCHES[-1:])
    torch.testing.assert_close(frozen, load_beats("tiny").encode(FEATURES, layers=[1, -1])[0].mean(1))
    with pytest.raises(InputError, match="this BEATs has outputs 0 to 2"):
        BranchModel(spec(backbone={"layers": [3]}))


def test_batches_hold_every_clip_once_and_what_attention_allows():
    for seconds, largest in (([1] * 40, 32), ([10] * 40, 32), ([30] * 20, 3), ([1] * 40 + [60] * 3, 32), ([600, 5], 1)):
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
def test_a_branch_embeds_in_its_precision_and_never_in_tf32(precision, tf32_elsewhere):
    model, seen = BranchModel(spec(backbone={"precision": precision}), train_in_bfloat16=True), []

    def tf32():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    for layer in (model.backbone.layers[0].fc1, model.projection):
        layer.register_forward_hook(lambda *a: seen.append((a[-1].dtype, *tf32())))
    model.train()(FEATURES, None)
    model.eval()(FEATURES, None)
    model.embeddings(FEATURES, None, [PROJECTION])
    assert tf32() == ("medium", True)
    encoders = [torch.bfloat16, *[getattr(torch, precision)] * 2]
    assert seen == [(dtype, "highest", False) for encoder in encoders for dtype in (encoder, torch.float32)]


def test_what_is_wrong_with_a_branch_is_named_with_its_file(tmp_path):
    file = tmp_path / "branch.pt"
    with pytest.raises(InputError, match=rf"^{file}: cannot be read \(No such file or directory\)"):
        load_branch(file)
    for change, message in (
        (lambda c: c.update(spec='{"wings": 2}'), r"the spec in it is of another version of tutti \(1 errors\)$"),
        (lambda c: c.pop("changed"), "no trained branch of this version of tutti$"),
        (lambda c: c["changed"].pop("projection.bias"), r"missing key projection\.bias$"),
        (lambda c: c["changed"].update(extra=torch.ones(1)), "unexpected key extra$"),
    ):
        save_branch(BranchModel(spec()), file)
        content = torch.load(file, weights_only=True)
        change(content)
        torch.save(content, file)
        with pytest.raises(InputError, match=f"^{file}: {message}"):
            load_branch(file)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(InputError, match=f"^{file}: not a file of tensors saved by torch$"):
        load_branch(file)


def mean_and_deviation(vectors, weights):
    """Of vectors (B, n, …, D) with weights (B, n, …, 1), over n."""
    mean = (weights * vectors).sum(1) / weights.sum(1)
    return mean, ((weights * (vectors - mean[:, None]) ** 2).sum(1) / weights.sum(1)).sqrt()


@pytest.mark.parametrize("gamma", [0, 4])
def test_poolings_follow_their_formulas_padding_has_no_say_and_one_value_everywhere_a_gradient(gamma):
    torch.manual_seed(0)
    names = ["mean", "attentive_statistics", "band_mean", "band_statistics"]
    chosen = [spec(pooling=one).pooling for one in (*names, {"name": "relative_deviation", "gamma": gamma})]
    poolings = {one.name: Pooling(one, 5) for one in chosen}
    patches = torch.randn(3, 40, 5)
    moments, equal = patches.reshape(3, 5, 8, 5), torch.ones(3, 5, 8, 1)
    distance = (moments - moments.mean(1, keepdim=True)).norm(dim=-1, keepdim=True)
    departing = (1 + distance / distance.amax(1, keepdim=True)) ** gamma
    attention = poolings["attentive_statistics"].attention(patches).softmax(1)
    expected = {
        "mean": patches.mean(1),
        "attentive_statistics": torch.cat(mean_and_deviation(patches, attention), -1),
        "band_mean": moments.mean(1),
        "band_statistics": torch.cat(mean_and_deviation(moments, equal), -1),
        "relative_deviation": mean_and_deviation(moments, departing)[0],
    }
    padding = (torch.arange(48) >= 40).expand(3, 48)
    padded = torch.cat([patches, 100 * torch.randn(3, 8, 5)], dim=1)
    for name, pool in poolings.items():
        assert expected[name].shape[1:] == ((8, pool.output_dim) if pool.bands == 8 else (pool.output_dim,))
        torch.testing.assert_close(pool(patches, None), expected[name], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(pool(padded, padding), expected[name], atol=1e-4, rtol=1e-4)
        for value in (0.0, 1.0):
            same = torch.full((1, 16, 5), value, requires_grad=True)
            pool(same, None).sum().backward()
            assert torch.isfinite(same.grad).all()


def frozen(pooling="mean", layers=(-1,), **settings):
    taken = PatchesSpec.model_validate({"pooling": pooling, "layers": layers})
    return BranchSpec.model_validate({"strategy": "frozen", **settings}), taken


FROZEN = [
    frozen(),
    frozen({"name": "relative_deviation", "gamma": 4}),
    frozen("band_statistics", [1, -1]),
    frozen(layers=[0, 1, 2]),
    frozen(channel="far"),
    frozen(backbone={"precision": "bfloat16"}),
]


def test_one_pass_over_a_channel_gives_each_frozen_branch_what_it_would_get_alone(clips, tmp_path, passes):
    together = [frozen_embeddings(one, FROZEN, clips, tmp_path / "all", "cpu") for one in FROZEN]
    assert sum(passes) == 3 * len(clips)  # near, far, and in another precision
    assert 0 < np.abs(together[0] - together[-1]).max() < 0.05 * np.abs(together[0]).max()
    for one, made in zip(FROZEN, together, strict=True):
        (alone,) = embedded(BranchModel(one[0]), clips, one[0].channel, [one[1]], batch_size=1)
        np.testing.assert_allclose(made, alone, atol=2e-5 if one[0].backbone.precision == "float32" else 0.05)
        torch.manual_seed(1)
        assert np.array_equal(made, frozen_embeddings(one, [], clips, tmp_path / "new" / "folder", "cpu"))
    assert {path.suffix for path in (tmp_path / "all").iterdir()} == {".npy", ".lock"}
    of_another_node = np.full((4, 64), 7)  # takes the place of ours
    shared = frozen_embeddings(FROZEN[0], [], clips, tmp_path, "cpu", lambda path: np.save(path, of_another_node))
    np.testing.assert_array_equal(shared, of_another_node)


def test_log_mel_gives_the_means_and_deviations_of_64_bands_and_has_one_output(clips, tmp_path):
    made = frozen_embeddings(frozen("band_statistics", backbone="log_mel"), [], clips, tmp_path, "cpu")
    for clip, statistics in enumerate(made.reshape(4, 8, 2, 8)):
        log_mels = fbank(torch.from_numpy(clips.waveform(clip, "near"))[None])[0].numpy()
        bands = log_mels.reshape(-1, 64, 2).mean(axis=2)
        np.testing.assert_allclose(statistics[:, 0].ravel(), bands.mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(statistics[:, 1].ravel(), bands.std(axis=0), atol=1e-4)
    with pytest.raises(InputError, match=r"layers \[1\]: log_mel has one output, -1"):
        frozen_embeddings(frozen(layers=[1], backbone="log_mel"), [], clips, tmp_path, "cpu")


def test_what_branches_share_is_computed_once_on_a_node(dataset, index, tmp_path, monkeypatch, passes):
    done, index, together = [], index.slice(0, 12), Barrier(4)
    for module, name in ((cache, "read_clip"), (channels, "_cancelled")):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, f=function, n=name: done.append(n) or f(*a))

    def start(number):
        together.wait(60)
        audio = channels.with_cancellation(cache.open_cache(dataset, index, tmp_path / "clips"), tmp_path / "derived")
        return frozen_embeddings(FROZEN[number % 2], FROZEN[:2], audio, tmp_path / "derived", "cpu")

    with ThreadPoolExecutor(4) as branches:
        made = list(branches.map(start, range(4)))
    assert (sorted(done), sum(passes)) == (["_cancelled"] + ["read_clip"] * 12, 12)
    assert all(map(np.array_equal, made[:2], made[2:]))
