"""The generator learns conditions, samples reproducibly, and its check lets through real sounds only."""

import dataclasses
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from branches.audio.cache import AudioCache, open_cache
from branches.data.dataset import class_labels, index_of, read_index
from branches.data.synthetic import SyntheticSize, write_dataset
from branches.generator import GeneratorSpec, generate, read_set, train_generator, write_set
from branches.generator.conditions import Condition, Vocabulary, conditions_of, rare_conditions
from branches.generator.flow import flow_loss, sample
from branches.generator.judge import Neighbours, SampleCheck, held_out
from branches.generator.learning import balanced
from branches.generator.network import VelocityNetwork
from branches.generator.real_clips import RealClips, WindowStatistics, band_statistics, real_clips, window_statistics
from branches.generator.sampling import choose_references
from branches.generator.scale import BandScale
from scoring.errors import InputError

SPEC = GeneratorSpec(
    width=16, depth=1, kernel=3, steps=12, batch_size=4, crop_seconds=0.6, learning_rate=2e-3, warmup_steps=3,
    sampling_steps=2, strength=0.3, fill=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Clip index and decoded clips of two machines, 16 source and 6 target training clips each."""
    root = tmp_path_factory.mktemp("generator")
    write_dataset(root / "data", SyntheticSize(16, 6, 1, 2.0), machines=["rotor", "pump"])
    index = read_index(root / "data")
    return index, open_cache(root / "data", index, root / "cache")


@pytest.fixture(scope="module")
def generator(data):
    index, audio = data
    return train_generator(SPEC, audio, index, "near")


def weights(generator):
    return torch.cat([p.detach().flatten() for p in generator.network.parameters()])


def test_rare_conditions_get_the_samples_they_lack(data, generator):
    generated = generate(generator)
    rows, wanted = generated.rows, rare_conditions(generator.clips.conditions, SPEC.fill)
    assert conditions_of(rows) == [c for c, n in wanted.items() for _ in range(n)]
    assert generated.features.shape == (rows.num_rows, generator.clips.frames, 128)
    assert generated.features.dtype == np.float16
    assert np.isfinite(generated.features).all()
    training = data[0].filter(pa.compute.equal(data[0]["split"], "train"))
    assert set(rows["class"].to_pylist()) <= set(class_labels(training)[1])
    assert set(rows["reference"].to_pylist()) <= set(training["clip"].to_pylist())
    counts = generated.check["conditions"].values()
    assert [c["copy"] + c["far"] + c["inconsistent"] + c["accepted"] for c in counts] == list(wanted.values())


def test_same_seed_same_samples_other_seed_others(data, generator):
    index, audio = data
    again = train_generator(SPEC, audio, index, "near")
    assert torch.equal(weights(generator), weights(again))
    np.testing.assert_array_equal(generate(generator).features, generate(again).features)
    other = dataclasses.replace(generator, spec=SPEC.model_copy(update={"seed": 1}))
    assert not np.array_equal(generate(generator).features, generate(other).features)


def test_test_clips_have_no_say(data, generator):
    index, audio = data
    samples = audio.samples.copy()
    for clip in np.flatnonzero(index["split"].to_numpy() == "test"):
        samples[audio.start[clip] : audio.start[clip + 1]] = 12345
    deaf = train_generator(SPEC, AudioCache(samples, audio.start, audio.channels), index, "near")
    np.testing.assert_array_equal(generate(generator).features, generate(deaf).features)
    assert generate(generator).rows.equals(generate(deaf).rows)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("stop_at", [1, 7])
def test_a_resumed_training_ends_bit_for_bit_the_same(data, generator, tmp_path, stop_at):
    index, audio = data
    checkpoint, reports = tmp_path / "generator.pt", []

    def stop(step, loss):
        if step == stop_at:
            raise Stopped

    with pytest.raises(Stopped):
        train_generator(SPEC, audio, index, "near", checkpoint, stop, checkpoint_seconds=0)
    assert stop_at == 1 or torch.load(checkpoint, weights_only=True)["step"] == stop_at - 1
    resumed = train_generator(SPEC, audio, index, "near", checkpoint, lambda step, loss: reports.append(step))
    assert reports == list(range(1, SPEC.steps + 1))
    assert torch.equal(weights(resumed), weights(generator))


def test_a_damaged_checkpoint_means_a_fresh_start(data, generator, tmp_path, caplog):
    index, audio = data
    (tmp_path / "generator.pt").write_bytes(b"not a checkpoint")
    assert torch.equal(
        weights(train_generator(SPEC, audio, index, "near", tmp_path / "generator.pt")), weights(generator)
    )
    assert "training starts over" in caplog.text


def test_a_diverging_training_says_so_and_leaves_no_checkpoint(data, tmp_path):
    index, audio = data
    checkpoint = tmp_path / "generator.pt"
    spec = SPEC.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(InputError, match="training diverged"):
        train_generator(spec, audio, index, "near", checkpoint, checkpoint_seconds=0)
    assert not checkpoint.exists()


def test_nothing_rare_is_said_before_training(data):
    index, audio = data
    with pytest.raises(InputError, match="nothing to generate"):
        train_generator(SPEC.model_copy(update={"fill": 0.1}), audio, index, "near")


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 40), min_size=1), st.floats(0.1, 1))
def test_filling_reaches_the_wanted_share_and_no_more(counts, fill):
    paths = [
        f"m/train/section_00_source_train_normal_{k:04d}_x_{value}.wav" for value, n in counts.items() for k in range(n)
    ]
    conditions = conditions_of(index_of(paths))
    lacking = {dict(c.attributes)["x"]: n for c, n in rare_conditions(conditions, fill).items()}
    largest = max(counts.values())
    for value, n in counts.items():
        assert n + lacking.get(value, 0) == max(n, round(fill * largest))
    times = np.bincount(balanced(conditions), minlength=len(conditions))
    assert times.min() == 1 or len(counts) > 1
    assert times.max() == max(1, round((largest / min(counts.values())) ** 0.5))


def test_words_are_the_machines_own_and_combine_freely():
    index = index_of(
        [
            "a/train/section_00_source_train_normal_0000_mic_1_mic_2.wav",
            "a/train/section_00_target_train_normal_0001_mic_2_mic_1.wav",
            "b/train/section_00_source_train_normal_0000_mic_1_mic_2.wav",
        ]
    )
    first, second, third = conditions_of(index)
    vocabulary = Vocabulary([first, second, third])
    encoded = vocabulary.encode([first, second, third])
    # Only the machine itself is a word that two of these clips share: the same value in another place is another word.
    assert len(np.unique(encoded)) == encoded.size - 1 == len(vocabulary) - 1
    combined = dataclasses.replace(first, attributes=(("mic", "1"), ("mic", "1")))
    assert set(vocabulary.encode([combined])[0]) <= set(encoded.flat)
    with pytest.raises(InputError, match="no training clip has a/section_00/0:mic=3"):
        vocabulary.encode([dataclasses.replace(first, attributes=(("mic", "3"),))])


def test_a_combination_that_no_clip_has_is_sampled_but_not_vouched_for(generator):
    seen = next(c for c in generator.clips.conditions if str(c) == "rotor/section_00/source/spd=1")
    unseen = dataclasses.replace(seen, domain="target")
    generated = generate(generator, {unseen: 3})
    assert np.isfinite(generated.features).all()
    assert set(generated.rows["verdict"].to_pylist()) == {"far"}


def test_references_are_clips_of_the_machines_other_conditions(generator):
    real = generator.clips.conditions
    wanted = dict.fromkeys(rare_conditions(real, 1), 12)
    references = choose_references(real, wanted, seed=0)
    for condition, own in zip(wanted, np.split(references, len(wanted)), strict=True):
        assert {real[r].group for r in own} == {condition.group}
        assert condition not in {real[r] for r in own}
        assert len(set(own)) == 12
    with pytest.raises(InputError, match="no other condition"):
        choose_references(real[:1], {real[0]: 1}, seed=0)


# The network and the flow, without clips


def classes(n):
    """Log-mels of two classes, one louder in the lower bands and one in the upper: (n, 16, 128), words (n, 1)."""
    word = torch.arange(n) % 2
    spectrum = torch.where((torch.arange(128) < 64) == (word[:, None] == 0), 1.0, -1.0)
    return spectrum[:, None] + 0.2 * torch.randn(n, 16, 128), 1 + word[:, None]


def tilt(x):
    return float((x[..., :64].mean() - x[..., 64:].mean()) / 2)


def test_guidance_moves_samples_towards_the_condition():
    torch.manual_seed(0)
    network = VelocityNetwork(SPEC.model_copy(update={"width": 32}), 3)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(150):
        data, words = classes(16)
        kept = torch.rand(16, 1) > 0.2
        loss = flow_loss(network, data, torch.randn_like(data), torch.rand(16), words * kept)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    noise = torch.randn(16, 16, 128)
    for word, sign in ((1, 1), (2, -1)):
        wanted = torch.full((16, 1), word)
        tilts = [sign * tilt(sample(network, noise, noise, wanted, 1.0, g, 8)) for g in (0, 0.5, 1, 1.5)]
        assert tilts == sorted(tilts)
        assert tilts[0] < 0.8 < tilts[2]


def test_an_untrained_network_gives_noise_of_unit_variance_and_keeps_the_reference_at_little_strength():
    torch.manual_seed(0)
    network, words = VelocityNetwork(SPEC, 2), torch.ones(8, 1, dtype=torch.long)
    reference, noise = torch.full((8, 16, 128), 3.0), torch.randn(8, 16, 128)
    free = sample(network, reference, noise, words, strength=1.0, guidance=1.0, steps=20)
    assert free.std() == pytest.approx(1, abs=0.05)
    assert free.mean() == pytest.approx(0, abs=0.05)
    held = sample(network, reference, noise, words, strength=0.01, guidance=1.0, steps=2)
    assert (held - reference).abs().max() < 0.1


# The check


@pytest.fixture(scope="module")
def check(data):
    clips = real_clips(data[1], data[0], "near", 1.8)
    return SampleCheck(clips, window_statistics(clips, "cpu"), 0.5, 2.0), clips


def whole(clips):
    n = np.arange(len(clips.rows))
    return band_statistics(clips.crops(n, 0 * n, torch.device("cpu")))


def test_copies_are_found_wherever_they_begin(check):
    judge, clips = check
    assert set(judge.judge(whole(clips), clips.conditions).verdict) == {"copy"}
    n = np.arange(len(clips.rows))
    shifted = clips.crops(n, clips.last_start(n) * 3 // 5, torch.device("cpu"))
    assert np.mean(judge.judge(band_statistics(shifted), clips.conditions).verdict == "copy") > 0.9


def test_noise_and_other_machines_do_not_pass(check):
    judge, clips = check
    noise = band_statistics(torch.randn(len(clips.rows), clips.frames, 128))
    assert set(judge.judge(noise, clips.conditions).verdict) == {"far"}
    rotated = clips.conditions[22:] + clips.conditions[:22]
    assert {a.machine == b.machine for a, b in zip(rotated, clips.conditions, strict=True)} == {False}
    judgement = judge.judge(whole(clips), rotated)
    assert "accepted" not in judgement.verdict
    assert not any(judgement.heard == [str(c) for c in rotated])


@pytest.fixture(scope="module")
def drawn():
    """A check of clips whose band statistics are drawn, and more clips of the same conditions."""
    rng = np.random.default_rng(0)
    conditions = [Condition(m, 0, d, ()) for m in "ab" for d in ("source", "target")]
    spectra = rng.normal(0, 0.1, (4, 3, 16)).repeat(8, axis=2)

    def draw(counts):
        which = np.repeat(np.arange(4), counts)
        gain = rng.normal(0, 0.05, (len(which), 1, 1)) * [[[1], [0], [0]]]
        statistics = spectra[which] + gain + rng.normal(0, 0.03, (len(which), 3, 128))
        return [conditions[k] for k in which], statistics.astype(np.float32)

    real, statistics = draw([60, 10, 60, 10])
    clips = RealClips(None, "near", None, np.arange(len(real)), real, 100)
    return SampleCheck(clips, WindowStatistics(np.arange(len(real)), statistics), 0.5, 2.0), *draw([20] * 4)


def test_most_unheard_real_clips_pass(drawn):
    check, conditions, statistics = drawn
    judgement = check.judge(statistics, conditions)
    assert np.mean(judgement.verdict == "accepted") > 0.9
    assert np.median(judgement.nearest_distance) == pytest.approx(1, abs=0.2)
    assert min(check.accuracy().values()) > 0.9
    assert set(check.accuracy()) == {str(c) for c in conditions}


def test_a_source_clip_that_claims_to_be_target_is_heard(drawn):
    check, conditions, statistics = drawn
    claimed = [dataclasses.replace(c, domain="target" if c.domain == "source" else "source") for c in conditions]
    verdict = check.judge(statistics, claimed).verdict
    assert np.mean(verdict == "accepted") < 0.05


def test_a_condition_of_one_clip_still_has_a_distance_and_is_in_no_held_out_half():
    names = np.array(["a"] * 5 + ["b"], object)
    assert held_out(names).sum() == 2
    assert not held_out(names)[5]
    points = np.random.default_rng(0).normal(size=(6, 3, 128)).astype(np.float32)
    neighbours = Neighbours(points, np.arange(6), names)
    nearest, distance, own = neighbours.nearest(points[5] + 0.01, "b")
    assert nearest == 5
    assert max(distance, own) < 0.1
    assert neighbours.nearest(points[0], "b")[2] > 0.5


def test_copies_among_the_real_clips_and_conditions_of_one_clip_leave_distances_finite():
    points = np.zeros((3, 3, 128), np.float32)
    for names in (["a"] * 3, ["a", "b", "c"]):
        neighbours = Neighbours(points, np.arange(3), np.array(names, object))
        assert neighbours.nearest(points[0] + 1, "a") == (0, 16, 16)


def test_the_effects_of_words_add_up():
    rng = np.random.default_rng(1)
    pairs = [("source", "1"), ("source", "2"), ("target", "1")]
    real = [Condition("a", 0, d, (("x", v),)) for d, v in pairs for _ in range(200)]
    level = np.repeat([0.0, 1.0, 0.5], 200)[:, None, None] + rng.normal(0, 0.1, (600, 1, 1))
    statistics = np.concatenate([level, np.full((600, 2, 1), 0.3)], axis=1).repeat(128, axis=2).astype(np.float32)
    clips = RealClips(None, "near", None, np.arange(600), real, 100)
    scale = BandScale(clips, WindowStatistics(np.arange(600), statistics), Vocabulary(real))
    unseen = dataclasses.replace(real[-1], attributes=(("x", "2"),))
    mean, std = scale.of([real[0], real[200], real[-1], unseen])
    np.testing.assert_allclose(mean[:, 0, 0], [0, 1, 0.5, 1.5], atol=0.05)
    np.testing.assert_allclose(std, np.hypot(0.3, 0.1), atol=0.01)  # over time, and from clip to clip


# The set on disk


@pytest.fixture(scope="module")
def folder(generator, tmp_path_factory):
    folder = tmp_path_factory.mktemp("set") / "generated"
    write_set(generate(generator), folder)
    return folder


def test_a_set_is_read_as_it_was_written(generator, folder):
    written, read = generate(generator), read_set(folder)
    np.testing.assert_array_equal(written.features, read.features)
    assert isinstance(read.features, np.memmap)
    assert read.rows.equals(written.rows)
    assert read.check == written.check
    assert read.check["spec"] == SPEC.model_dump()
    write_set(written, folder)  # in place of the first
    assert [p.name for p in folder.parent.iterdir()] == ["generated"]


@pytest.mark.parametrize("name", ["features.npy", "rows.parquet", "check.json"])
@pytest.mark.parametrize("damage", ["absent", "empty", "cut"])
def test_a_damaged_set_is_named(folder, tmp_path, name, damage):
    copy = shutil.copytree(folder, tmp_path / "set")
    if damage == "absent":
        (copy / name).unlink()
    else:
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(b"" if damage == "empty" else content[: len(content) // 2])
    with pytest.raises(
        InputError, match=f"{copy}: not a generated set, or damaged .* delete it and run again"
    ) as error:
        read_set(copy)
    assert "\n" not in str(error.value)


def test_a_set_in_which_hardly_anything_passed_is_refused(generator):
    generated = generate(generator)
    spoilt = ["far"] * (generated.rows.num_rows - 1) + ["accepted"]
    position = generated.rows.schema.get_field_index("verdict")
    rows = generated.rows.set_column(position, "verdict", pa.array(spoilt))
    with pytest.raises(InputError, match=r"1 passed the check \(1 accepted, \d+ far\)"):
        dataclasses.replace(generated, rows=rows).accepted()
    passed = rows.set_column(position, "verdict", pa.array(["accepted"] * len(spoilt)))
    assert dataclasses.replace(generated, rows=passed).accepted().tolist() == list(range(len(spoilt)))
