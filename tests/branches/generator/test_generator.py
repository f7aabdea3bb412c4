import json
import shutil
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from branches.audio.cache import AudioCache, in_memory
from branches.data.dataset import index_of
from branches.frontend import fbank
from branches.generator import accepted_samples, generate, rare_states, real_clips, states_of, train_generator
from branches.generator.flow import VelocityNetwork, flow_loss, sample
from branches.generator.generated_set import VERDICTS, choose_references, nearest_clips
from branches.generator.states import OperatingState, balanced, band_levels, band_scale
from branches.spec import GeneratorSpec
from scoring.errors import InputError

SPEC = GeneratorSpec(
    width=16, depth=1, steps=12, batch_size=4, crop_seconds=0.6, learning_rate=2e-3, warmup_steps=3,
    sampling_steps=2, strength=0.3, fill=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def clips(audio, index):
    return real_clips(audio, index, "near", SPEC.crop_seconds, "cpu")


@pytest.fixture(scope="module")
def folder(clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("set") / "generated"
    generate(SPEC, train_generator(SPEC, clips), clips, folder)
    return folder


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 40), min_size=1), st.floats(0.1, 1))
def test_filling_reaches_the_wanted_share_and_no_more(counts, fill):
    states = [OperatingState("m", 0, "source", (("x", value),)) for value, n in counts.items() for _ in range(n)]
    lacking = {dict(s.attributes)["x"]: n for s, n in rare_states(states, fill).items()}
    largest = max(counts.values())
    for value, n in counts.items():
        assert n + lacking.get(value, 0) == max(n, round(fill * largest))
    times = np.bincount(balanced(states), minlength=len(states))
    assert times.tolist() == [round((largest / n) ** 0.5) for n in counts.values() for _ in range(n)]


def test_the_effects_of_words_add_up():
    rng, counts = np.random.default_rng(1), 200
    effects = {("source", "1"): 0.0, ("source", "2"): 1.0, ("target", "1"): 0.5, ("target", "2"): 9.0}
    states = [OperatingState("a", 0, d, (("x", v),)) for d, v in effects for _ in range(counts)][: 3 * counts + 1]
    level = np.repeat(list(effects.values()), counts)[: len(states)] + rng.normal(0, 0.1, len(states))
    levels = [np.repeat([[m, 0.3]], 128, axis=1).astype(np.float32) for m in level]
    words = np.array([[s.domain == "target", s.attributes[0][1] == "2"] for s in states], np.float32)
    mean, std = (table[:, 0, 0] for table in band_scale(states, words, levels))
    np.testing.assert_allclose(mean[::counts], [0, 1, 0.5, 1.5], atol=0.1)  # one odd clip does not count
    np.testing.assert_allclose(std[: 3 * counts], np.hypot(0.3, (level - mean).std()), rtol=0.01)


def test_crops_are_standardised_stretches_of_the_channel_that_is_heard():
    rng = np.random.default_rng(0)
    recorded = [rng.normal(0, level, (15_600, 2)).astype(np.float32) for level in (0.02, 0.1, 0.01, 0.02)]
    paths = [f"{m}/train/section_00_source_train_normal_0000_x_{m}.wav" for m in "abc"] + ["a/test/section_00_0000.wav"]
    clips = real_clips(in_memory(recorded), index_of(paths), "far", 10.0, "cpu")
    assert (clips.frames, clips.rows.tolist(), len(clips.states)) == (96, [1, 2, 3], 3)
    assert (clips.words @ clips.words.T).tolist() == [[3, 0, 0], [0, 3, 0], [0, 0, 3]]  # each machine has its own
    chosen = np.array([2, 0, 0])
    _, mean, std = clips.conditioning(chosen)
    heard = fbank(torch.from_numpy(np.stack([recorded[1 + i][:, 1] for i in chosen])))
    torch.testing.assert_close(clips.crops(chosen, rng) * std + mean, heard)
    np.testing.assert_allclose(np.concatenate([clips.levels[i] for i in chosen]), band_levels(heard), atol=1e-4)


def test_the_flow_leads_to_the_wanted_state():
    torch.manual_seed(0)
    network, state = VelocityNetwork(32, 1, 2), torch.arange(16) % 2  # louder in the lower or in the upper bands
    spectrum = torch.where((torch.arange(128) < 64) == (state[:, None, None] == 0), 1.0, -1.0)
    words, optimizer = torch.eye(2)[state], torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(120):
        data, noise = spectrum + 0.2 * torch.randn(16, 16, 128), torch.randn(16, 16, 128)
        loss = flow_loss(network, data, noise, torch.rand(16), words)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.7
    x = sample(network, data, noise, words.flip(1), strength=1.0, steps=8)
    assert (x.mean(1) * data.mean(1)).mean(1).max() < -0.6  # each becomes the other


@pytest.mark.parametrize("strength", [0.01, 0.3, 1.0])
@torch.no_grad()
def test_an_untrained_network_is_the_best_linear_guess_and_a_little_noise_leaves_the_reference_as_it_is(strength):
    torch.manual_seed(0)
    network, words, t = VelocityNetwork(16, 1, 1), torch.ones(8, 1), torch.full((8,), 1 - strength)
    reference, noise = torch.randn(2, 8, 16, 128)
    assert flow_loss(network, reference, noise, t, words) == pytest.approx(1, abs=0.05)
    mixture, deviation = (1 - strength) * reference + strength * noise, (strength**2 + (1 - strength) ** 2) ** 0.5
    moved = sample(network, reference, noise, words, strength, steps=20)
    torch.testing.assert_close(moved, mixture / deviation, atol=0.01, rtol=0)
    guess = network(mixture, t, words)
    network.leave.bias.fill_(1.0)
    torch.testing.assert_close(network(mixture, t, words) - guess, torch.full_like(guess, 1 / deviation))


def test_rare_states_get_the_samples_they_lack_made_from_other_states_of_the_machine(clips, folder):
    made, wanted = pq.read_table(folder / "rows.parquet"), rare_states(clips.states, SPEC.fill)
    features, check = np.load(folder / "features.npy"), json.loads((folder / "check.json").read_text())
    assert Counter(states_of(made)) == wanted
    assert (features.shape, features.dtype) == ((made.num_rows, clips.frames, 128), np.float16)
    assert np.isfinite(features).all()
    real = {*zip(*clips.index.select(["machine", "clip"]).to_pydict().values(), strict=True)}
    assert {(row["machine"], row[of]) for row in made.to_pylist() for of in ("reference", "nearest")} <= real
    distance, own = made["nearest_distance"].to_numpy(), made["own_distance"].to_numpy()
    expected = np.where(distance < SPEC.copy_below, "copy", np.where(own > SPEC.far_above, "far", "accepted")).tolist()
    assert made["verdict"].to_pylist() == expected
    assert expected.count("accepted") > 5
    none = dict.fromkeys(VERDICTS, 0)
    told = {str(s): {"clips": clips.states.count(s), "samples": n, **none} for s, n in wanted.items()}
    for state, verdict in zip(states_of(made), expected, strict=True):
        told[str(state)][verdict] += 1
    assert check == {"spec": SPEC.model_dump(), "operating_states": told}
    assert len(clips.levels[0]) == (98 - clips.frames) // (clips.frames // 8) + 1  # windows overlap by seven eighths
    like, references = choose_references(clips.states, SPEC)
    for i in np.unique(like):
        own, state = references[like == i].tolist(), clips.states[i]
        others = {r for r, s in enumerate(clips.states) if s.group == state.group and s != state}
        assert set(own) <= others
        assert len(set(own)) == min(len(own), len(others))  # none twice before all had their turn
    with pytest.raises(InputError, match=r"no operating state has less than 0.1 of the clips .* nothing to generate"):
        train_generator(SPEC.model_copy(update={"fill": 0.1}), clips)


def test_network_and_samples_depend_on_seed_and_training_clips_alone(index, audio, clips, folder, tmp_path):
    def files(folder):
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    network, samples = train_generator(SPEC, clips), audio.samples.copy()
    for clip in np.flatnonzero(index["split"].to_numpy() == "test"):
        samples[audio.start[clip] : audio.start[clip + 1]] = 12345
    deaf = real_clips(AudioCache(samples, audio.start, audio.channels), index, "near", SPEC.crop_seconds, "cpu")
    checkpoint, curve, six = tmp_path / "generator.pt", [], iter(range(6))
    with pytest.raises(StopIteration):
        train_generator(SPEC, deaf, checkpoint, lambda *_: next(six), checkpoint_seconds=0)
    resumed = train_generator(SPEC, deaf, checkpoint, lambda *point: curve.append(point))
    assert [step for step, _ in curve] == list(range(1, SPEC.steps + 1))
    assert [curve[0][1], curve[-1][1]] == pytest.approx([0.99331, 1.00233], rel=1e-3)  # of this TRAINING_VERSION
    assert torch.equal(resumed.leave.weight, network.leave.weight)
    generate(SPEC, resumed, deaf, tmp_path / "again")
    assert files(tmp_path / "again") == files(folder)
    other = SPEC.model_copy(update={"seed": 1})
    generate(other, network, clips, tmp_path / "again")  # in place of the first
    assert files(tmp_path / "again")["features.npy"] != files(folder)["features.npy"]
    assert {path.name for path in tmp_path.iterdir()} == {"again", "generator.pt"}
    assert not torch.equal(network.leave.weight, train_generator(other, clips).leave.weight)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=4), st.booleans(), st.integers(0, 99))
def test_distances_are_those_of_the_definition_for_any_number_of_clips(counts, copies, seed):
    rng, states = np.random.default_rng(seed), np.repeat(list("abcd")[: len(counts)], counts)
    windows = [rng.normal(size=(rng.integers(1, 4), 256)) * (not copies) for _ in states]
    wanted, samples = rng.choice(states, 6), rng.normal(size=(6, 256))

    def far(point, clip):
        return np.linalg.norm(windows[clip] - point, axis=1).min()

    def usual(clips):
        return np.median([min(far(windows[a][0], b) for b in clips if b != a) for a in clips])

    of_machine = usual(range(len(states))) or 1.0
    made = nearest_clips(samples, wanted, windows, states)
    for point, state, found, distance, own in zip(samples, wanted, *made, strict=True):
        each, clips = np.array([far(point, clip) for clip in range(len(states))]), np.flatnonzero(states == state)
        of_state = (len(clips) >= 3 and usual(clips)) or of_machine
        assert each[found] == pytest.approx(each.min())
        assert (distance, own) == pytest.approx((each.min() / of_machine, each[clips].min() / of_state))


@pytest.mark.parametrize("passed", [0, 1, 2, 9])
def test_branches_get_the_accepted_samples_if_a_tenth_passed(tmp_path, passed):
    verdicts, features = ["far", "accepted"] * passed + ["copy"] * (18 - 2 * passed), torch.rand(18, 4, 128).numpy()
    pq.write_table(pa.table({"sample": range(18), "verdict": verdicts}), tmp_path / "rows.parquet")
    np.save(tmp_path / "features.npy", features)
    if passed < 2:
        with pytest.raises(InputError, match=rf"^of 18 generated samples {passed} passed the check \("):
            accepted_samples(tmp_path)
    else:
        rows, accepted = accepted_samples(tmp_path)
        assert rows["sample"].to_pylist() == list(range(1, 2 * passed, 2))
        assert np.array_equal(accepted, features[1 : 2 * passed : 2])


@pytest.mark.parametrize("name", ["features.npy", "rows.parquet"])
def test_a_damaged_set_is_named_in_one_line(folder, name, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "damaged")
    content = (copy / name).read_bytes()
    for damaged in (b"", content[:100], content[:-1], content[:500] + b"no end", None):
        (copy / name).write_bytes(damaged) if damaged is not None else (copy / name).unlink()
        with pytest.raises(InputError, match=rf"^{copy}: not a generated set, or damaged [^\n]*; delete it and run"):
            accepted_samples(copy)
