"""Log-mels and what stands out in them; networks of branches, their embeddings and files."""

import re
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torchaudio.compliance import kaldi

from branches.audio import cache, channels
from branches.beats import load_beats, save_beats
from branches.frames import FRAME_LENGTH, MIN_SAMPLES, n_frames
from branches.frontend import fbank, frame_padding
from branches.frozen import frozen_embeddings
from branches.model import BranchModel, batches_of_like_length, load_branch, save_branch
from branches.pooling import Pooling
from branches.spec import PROJECTION, BranchSpec, PatchesSpec
from branches.spectra import spectrum_of
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
    with pytest.raises(InputError, match=r"layers \[1\]: log_mel has one output, -1"):
        frozen_embeddings(frozen(layers=[1], backbone="log_mel"), [], clips, tmp_path, "cpu")
    of_another_node = np.full((4, 64), 7)  # takes the place of ours
    shared = frozen_embeddings(FROZEN[0], [], clips, tmp_path, "cpu", lambda path: np.save(path, of_another_node))
    np.testing.assert_array_equal(shared, of_another_node)


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


def by_kaldi(waveforms):
    """One clip at a time, in float64: in float32 quiet bins of loud clips are off by up to 4e-4."""
    clips = [kaldi.fbank(w[None] * 2**15, num_mel_bins=128, sample_frequency=16000) for w in waveforms.double()]
    return ((torch.stack(clips) - 15.41663) / (2 * 6.55582)).float()


def noise(n_samples, seed=0):
    return torch.rand(2, n_samples, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@settings(deadline=None, max_examples=20)
@given(st.integers(FRAME_LENGTH, 6000), st.floats(0.01, 1.0), st.just(0.0), st.integers(0, 2**31))
@example(800, 0.0, 0.0, 0)  # silence is Kaldi's floor
@example(16_000, 5e-5, 0.1, 0)  # an offset costs no precision
@example(16_000, 5e-5, 0.99, 0)
def test_equals_kaldi(n_samples, level, offset, seed):
    waveforms = offset + noise(n_samples, seed) * level
    assert fbank(waveforms).shape == (2, n_frames(n_samples), 128)
    torch.testing.assert_close(fbank(waveforms), by_kaldi(waveforms), atol=1e-5 if offset else 1e-4, rtol=0)


def test_full_precision_under_autocast_and_coarse_products_and_gradients_after_inference_mode(tf32_elsewhere):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = fbank(noise(4000))
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("medium", True)
    torch.testing.assert_close(features, by_kaldi(noise(4000)), atol=1e-4, rtol=0)
    with torch.inference_mode():
        fbank(noise(4000))
    waveforms = noise(4000).requires_grad_()
    fbank(waveforms).sum().backward()
    assert waveforms.grad.abs().sum(1).gt(0).all()


def test_frames_are_counted_and_wrong_input_is_named():
    assert [n_frames(n) for n in (0, 399, 400, 559, 560, MIN_SAMPLES)] == [0, 0, 1, 1, 2, 16]
    valid = [400, 559, 560, 2000]
    padding = frame_padding(torch.tensor(valid), n_frames(2000))
    assert padding.tolist() == [[i >= n_frames(n) for i in range(11)] for n in valid]
    for waveforms, message in (
        (torch.zeros(800), r"must be a \(batch, samples\) float tensor, not \(800,\) torch.float32"),
        (torch.zeros(1, 800, dtype=torch.int16), r"not \(1, 800\) torch.int16"),
        (torch.zeros(1, 399), "a clip of 399 samples is shorter than one frame; needed are 2800"),
    ):
        with pytest.raises(InputError, match=message):
            fbank(waveforms)


def recorded(number, seconds=5.0):
    """Of a machine whose level is not always the same: (samples, 1)."""
    rng = np.random.default_rng(number)
    return (0.02 * 10 ** rng.uniform(0, 0.3) * rng.normal(size=(int(16_000 * seconds), 1))).astype(np.float32)


def with_tone(hz, start, end):
    t = np.arange(80_000)[:, None] / 16_000
    return recorded(99) + 0.1 * np.where((t >= start) & (t < end), np.sin(2 * np.pi * hz * t), 0)


def test_what_stands_out_from_normals_is_told_with_its_time_frequency_and_level_and_of_normals_nothing(tmp_path):
    for i in range(30):
        soundfile.write(tmp_path / f"{i}.wav", recorded(i), 16_000)
    normals = sorted(tmp_path.iterdir())
    many, few = spectrum_of(normals), spectrum_of(normals[:3])
    for sound, change in (
        (with_tone(3100, 2, 4), "2.0–4.0 s, around 3.1 kHz, 1. dB above normal"),
        (with_tone(400, 0, 5), "throughout, around 4.. Hz, 2. dB above normal"),
        (np.repeat(with_tone(3100, 4.5, 5), 2, axis=1), "4.5–5.0 s, around 3.1 kHz, 1. dB above normal"),
        (recorded(99) / 8, "throughout, at all frequencies, 1. dB below normal"),
        (np.cumsum(recorded(99), axis=0) / 40, "throughout, from .* dB .* normal"),
        (np.zeros((80_000, 1)), "throughout, at all frequencies, [0-9]+ dB below normal"),
    ):
        assert re.fullmatch(change, many.change(sound.astype(np.float32)))
    assert [many.change(recorded(i)) for i in range(100, 130)].count("") >= 28
    assert isinstance(few.change(recorded(99, 0.2)), str)
    for gone in (normals[:2], [*normals, None], [*normals, tmp_path / "gone.wav"]):
        assert spectrum_of(gone) is None
