from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from branches.audio.cache import in_memory
from branches.data.dataset import index_of
from branches.frontend import fbank
from branches.spec import AugmentationSpec, BranchSpec, ClassesSpec, MixupSpec
from branches.training.augment import add_noise, mix, mixing, spec_augment
from branches.training.batches import batch_rows, make_batch
from branches.training.training_set import NoisePool, TrainingClips, classes_of, training_clips

FAN = [f"fan/train/section_00_source_train_normal_{i:04d}_spd_{i % 2}.wav" for i in range(8)]
PUMP = "pump/train/section_00_{}_train_normal_{:04d}_noAttribute.wav"
GENERATED = index_of(["fan/train/section_00_target_train_normal_0000_spd_1.wav", PUMP.format("target", 0)])
RNG = np.random.default_rng(0)
LENGTHS = [9_601, 9_601, 9_600, 4_000] * 4


def classes(embeddings=None, target=10, more=GENERATED[:0], attributes=(), clusters=None, domain=False):
    """Labels of 8 clips of a fan at two speeds and 40 source and some target clips of a pump, and of more; how many."""
    paths = [*FAN, *(PUMP.format("source", i) for i in range(40)), *(PUMP.format("target", i) for i in range(target))]
    index = index_of([*paths, *attributes])
    pseudo_labels = clusters and dict(zip(("source", "target"), clusters, strict=True))
    spec = ClassesSpec.model_validate({"domain": domain, "pseudo_labels": pseudo_labels})
    labels, unattributed = classes_of(index, more, embeddings, spec, seed=0)
    assert set(np.flatnonzero(unattributed)) == (set() if attributes else set(labels[8 : index.num_rows]))
    assert set(labels) - {-1} == set(range(len(unattributed)))
    return labels.tolist()


def test_classes_are_attributes_and_if_asked_domains_and_of_each_domain_its_number_of_clusters_whatever_is_loud():
    assert classes(more=GENERATED) == [0, 1] * 4 + [2] * 50 + [1, 2]
    assert classes(more=GENERATED, domain=True) == [0, 1] * 4 + [3] * 40 + [4] * 10 + [2, 4]
    hidden = RNG.integers(3, size=58)
    labels = classes(np.eye(3)[hidden] + 0.05 * RNG.normal(size=(58, 3)), clusters=(3, 3), more=GENERATED)
    assert labels[:8] == [0, 1] * 4
    assert len(set(zip(labels[8:48], hidden[8:48], strict=True))) == 3  # one cluster for each hidden state
    assert not set(labels[8:48]) & set(labels[48:58])
    assert len(set(labels[48:58])) == 2  # of five clips
    assert labels[58:] == [1, -1]  # which cluster would a generated clip be of?
    embeddings = RNG.normal(size=(68, 8, 3))
    labels = classes(embeddings, 20, clusters=(7, 1))
    assert (len(set(labels[8:48])), len(set(labels[48:]))) == (7, 1)
    assert labels == classes(embeddings * np.linspace(1, 100, 8)[:, None], 20, clusters=(7, 1))
    assert max(classes(np.ones((58, 3)), clusters=(4, 4))) == 3  # two speeds, two domains of copies of one clip
    spoken = ["pump/train/section_00_source_train_normal_0999_spd_1.wav"]
    assert max(classes(RNG.normal(size=(59, 3)), attributes=spoken, clusters=(4, 4))) == 3


def clips_for(noise=None, supplemental=None, generated=None, channels=(2, 2, 1), length=3_000):
    """Of three training clips of two machines, behind a test clip; near, clip i holds i, and far −i."""
    index = index_of(["fan/test/section_00_0000.wav", *FAN[:2], PUMP.format("source", 0)])
    audio = in_memory([np.full((length, c), [i, -i][:c], np.float32) for i, c in enumerate((1, *channels))])
    spec = BranchSpec.model_validate({"augmentation": {"noise": noise}})
    return training_clips(audio, index, spec, generated=generated, noise=supplemental)


def test_test_clips_are_not_trained_on_generated_ones_stand_behind_and_noise_is_of_the_far_channel_or_a_recording():
    clips = clips_for(generated=(GENERATED, np.zeros((2, 90, 128), np.float16)))
    assert (clips.rows.tolist(), clips.machines.tolist()) == ([1, 2, 3], ["fan", "fan", "pump"])
    assert (clips.labels.tolist(), clips.unattributed.tolist()) == ([0, 1, 2, 1, 2], [False, False, True])
    assert (clips.n_classes, len(clips.generated), clips.noise) == (3, 2, None)
    others = [clips_for(), clips_for(length=3_001), clips_for(channels=(1, 1, 1))]
    assert len({clips.signature, *(other.signature for other in others)}) == 3  # of clips and classes, not channels
    far = clips_for(noise={}).noise
    drawn = np.array([far.draw("fan", 7_000, RNG) for _ in range(20)])  # repeated, as it is shorter
    assert (drawn.shape, set(drawn.ravel())) == ((20, 7_000), {-1.0, -2.0})
    ramp = np.stack([np.arange(3_000), np.zeros(3_000)], axis=1).astype(np.float32)
    recordings = in_memory([ramp]), pa.table({"machine": ["fan"]})
    own = clips_for(noise={"source": "supplemental"}, supplemental=recordings).noise
    assert {int(own.draw("fan", 2_999, RNG)[0]) for _ in range(20)} == {0, 1}
    assert own.draw("pump", 100, RNG) is far.draw("pump", 100, RNG) is None  # its clips are mono: they hear the machine


def spec_with(augmentation=None, channel="near", seed=0, **training):
    training = {"steps": 5, "batch_size": 8, "crop_seconds": 0.6, **training}
    settings = {"augmentation": augmentation or {}, "training": training, "channel": channel, "seed": seed}
    return BranchSpec.model_validate(settings)


@pytest.fixture(scope="module")
def clips():
    """Near, clip i holds i + 1, i + 1 + 1e-5, …; far the negative of it. Noise is for the fan, of half the clips."""
    tracks = [np.arange(n) * 1e-5 + i + 1 for i, n in enumerate(LENGTHS)]
    audio = in_memory([np.stack([track, -track], axis=1).astype(np.float32) for track in tracks])
    rows, machines = np.arange(16), np.array(["fan", "pump"] * 8, object)
    noise = NoisePool(in_memory([np.full((10_000, 1), 9.0, np.float32)]), {"fan": np.array([0])}, "near")
    return TrainingClips(audio, rows, machines, rows % 3, np.zeros(3, bool), noise=noise)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 40))
def test_every_pass_takes_every_clip_once_in_an_order_of_its_own(n, batch_size):
    rows = np.concatenate([batch_rows(n, batch_size, step, seed=3) for step in range(-(-3 * n // batch_size))])
    passes = rows[: 3 * n].reshape(3, n)
    assert (np.sort(passes, axis=1) == np.arange(n)).all()
    assert n < 8 or len({tuple(p) for p in (*passes, batch_rows(n, n, 0, seed=4))}) == 4


@pytest.mark.parametrize("channel", ["near", "far"])
def test_longer_clips_are_cut_anywhere_and_shorter_ones_whole_beside_generated_ones(clips, channel):
    generated = np.arange(6 * 49).reshape(6, 49, 1).repeat(128, axis=2).astype(np.float16)
    more = replace(clips, generated=generated, labels=np.concatenate([clips.labels, np.arange(6)]))
    batch, begins = make_batch(spec_with(channel=channel, batch_size=88), more, 0), set()  # four passes
    assert (len(batch.waveforms), len(batch.labels)) == (64, 88)
    for waveform, label in zip(batch.waveforms, batch.labels[:64], strict=True):
        clip = int(abs(waveform[0])) - 1
        begins.add((LENGTHS[clip], round((abs(waveform[0]) - clip - 1) * 1e5)))
        assert (label, len(waveform)) == (clip % 3, min(9_600, LENGTHS[clip]))
        assert (waveform > 0).all() == (channel == "near")
        np.testing.assert_allclose(np.diff(abs(waveform[::100])), 1e-3, atol=1e-5)
    assert begins == {(9_601, 0), (9_601, 1), (9_600, 0), (4_000, 0)}
    assert {(made.shape, made.dtype.name) for made in batch.features} == {((48, 128), "float32")}
    begins = {(label, made[0, 0] - label * 49) for label, made in zip(batch.labels[64:], batch.features, strict=True)}
    assert begins == {(label, first) for label in range(6) for first in (0, 1)}


def test_noise_is_added_at_its_ratio_to_its_share_of_clips_and_mixtures_are_those_of_sounds_and_partners(clips):
    waveform, noise = np.random.default_rng(0).normal(size=(2, 4000)).astype(np.float32) * [[0.1], [3.0]]
    for snr_db in (-10.0, 0.0, 20.0):
        added = add_noise(waveform, noise, snr_db) - waveform
        assert 10 * np.log10(np.square(waveform).mean() / np.square(added).mean()) == pytest.approx(snr_db, abs=0.01)
        assert np.corrcoef(added, noise)[0, 1] == pytest.approx(1)
    assert np.array_equal(add_noise(waveform, 0 * noise, snr_db), waveform)
    some = {"noise": {"probability": 0.3, "snr_db": [0.0]}}
    plain, mixed = (make_batch(spec_with(more, batch_size=400), clips, 0).waveforms for more in ({}, some))
    noisy = np.array([not np.array_equal(a, b) for a, b in zip(plain, mixed, strict=True)])
    fans = np.array([int(waveform[0]) % 2 == 1 for waveform in plain])
    assert not noisy[~fans].any()
    assert noisy[fans].mean() == pytest.approx(0.3, abs=0.1)
    torch.manual_seed(0)
    a, b = torch.randn(2, 1, 32_000) * torch.tensor([0.1, 0.03])[:, None, None]
    heard, features = fbank(0.6**0.5 * a + 0.4**0.5 * b), torch.cat([fbank(a), fbank(b)])
    mixed = mix(features, torch.tensor([1, 0]), torch.tensor([0.6, 1.0]))
    assert (mixed[0] - heard[0]).mean().abs() < 0.01  # of incoherent noises the powers add up
    assert torch.equal(mixed[1], features[1])
    partner, share = mixing(1000, MixupSpec(probability=0.3))
    assert sorted(partner.tolist()) == list(range(1000)) != partner.tolist()
    shares = share[share < 1]
    assert len(shares) / 1000 == pytest.approx(0.3, abs=0.05)
    assert shares.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist() == pytest.approx([0.25, 0.5, 0.75], abs=0.1)
    assert [part.tolist() for part in mixing(4, None)] == [[0, 1, 2, 3], [1.0] * 4]


@pytest.mark.parametrize(("longest", "axis"), [(5, 1), (5, 2), (40, 1)])
def test_a_mask_is_one_stretch_of_any_width_up_to_the_longest_anywhere(longest, axis):
    spec = AugmentationSpec(time_mask=longest * (axis == 1), frequency_mask=longest * (axis == 2))
    masked = spec_augment(torch.ones(2_000, 20, 128), spec, 0.5) == 0.5
    stretch = masked.all(dim=3 - axis)
    assert torch.equal(masked, stretch.unsqueeze(3 - axis).expand_as(masked))
    assert set(stretch.sum(dim=1).tolist()) == set(range(min(longest, stretch.shape[1]) + 1))
    assert stretch.any(dim=0).all()
    assert (stretch[:, 1:] > stretch[:, :-1]).sum(dim=1).add(stretch[:, 0]).max() == 1  # beginnings
