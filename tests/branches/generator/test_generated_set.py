"""The generator samples reproducibly, its check lets through real sounds only, and a set is kept as it was made."""

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

from branches.audio.cache import AudioCache, open_cache
from branches.data.dataset import class_labels, read_index
from branches.data.synthetic import SyntheticSize, write_dataset
from branches.frontend import fbank
from branches.generator import accepted_samples, generate, rare_states, real_clips, states_of, train_generator
from branches.generator.generated_set import VERDICTS, check_samples, choose_references, nearest_clips
from branches.generator.states import band_levels
from branches.spec import GeneratorSpec
from scoring.errors import InputError

SPEC = GeneratorSpec(
    width=16, depth=1, steps=12, batch_size=4, crop_seconds=0.6, learning_rate=2e-3, warmup_steps=3,
    sampling_steps=2, strength=0.3, fill=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two machines, 16 source and 6 target training clips each."""
    root = tmp_path_factory.mktemp("generator")
    write_dataset(root / "data", SyntheticSize(16, 6, 1, 2.0), machines=["rotor", "pump"])
    return root


@pytest.fixture(scope="module")
def data(place):
    """Clip index and decoded clips."""
    index = read_index(place / "data")
    return index, open_cache(place / "data", index, place / "cache")


def clips_of(index, audio, seconds=SPEC.crop_seconds):
    return real_clips(audio, index, "near", seconds, "cpu")


@pytest.fixture(scope="module")
def clips(data):
    return clips_of(*data)


@pytest.fixture(scope="module")
def network(clips):
    return train_generator(SPEC, clips)


@pytest.fixture(scope="module")
def folder(network, clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("set") / "generated"
    generate(SPEC, network, clips, folder)
    return folder


def features(folder):
    return np.load(folder / "features.npy")


def rows(folder):
    return pq.read_table(folder / "rows.parquet")


def weights(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_rare_states_get_the_samples_they_lack(data, clips, folder):
    made, wanted = rows(folder), rare_states(clips.states, SPEC.fill)
    assert Counter(states_of(made)) == wanted
    assert features(folder).shape == (made.num_rows, clips.frames, 128)
    assert features(folder).dtype == np.float16
    assert np.isfinite(features(folder)).all()
    training = data[0].filter(pa.compute.equal(data[0]["split"], "train"))
    more = made.select(["machine", "section", "domain", "attributes"])
    assert set(class_labels(more)[1]) <= set(class_labels(training)[1])
    assert set(made["reference"].to_pylist()) <= set(training["clip"].to_pylist())
    check = json.loads((folder / "check.json").read_text())
    assert check["spec"] == SPEC.model_dump()
    counts = check["operating_states"]
    assert {name: c["samples"] for name, c in counts.items()} == {str(s): n for s, n in wanted.items()}
    assert all(sum(c[verdict] for verdict in VERDICTS) == c["samples"] for c in counts.values())


def test_same_seed_same_samples_other_seed_others(clips, network, folder, tmp_path):
    again = train_generator(SPEC, clips)
    assert torch.equal(weights(network), weights(again))
    generate(SPEC, again, clips, tmp_path / "again")
    np.testing.assert_array_equal(features(folder), features(tmp_path / "again"))
    generate(SPEC.model_copy(update={"seed": 1}), network, clips, tmp_path / "again")  # in place of the first
    assert not np.array_equal(features(folder), features(tmp_path / "again"))
    assert [p.name for p in tmp_path.iterdir()] == ["again"]


def test_test_clips_have_no_say(data, folder, tmp_path):
    index, audio = data
    samples = audio.samples.copy()
    for clip in np.flatnonzero(index["split"].to_numpy() == "test"):
        samples[audio.start[clip] : audio.start[clip + 1]] = 12345
    clips = clips_of(index, AudioCache(samples, audio.start, audio.channels))
    generate(SPEC, train_generator(SPEC, clips), clips, tmp_path / "deaf")
    np.testing.assert_array_equal(features(folder), features(tmp_path / "deaf"))
    assert rows(folder).equals(rows(tmp_path / "deaf"))


class Stopped(Exception):
    pass


def test_a_resumed_training_ends_bit_for_bit_the_same(clips, network, tmp_path):
    checkpoint, reports = tmp_path / "generator.pt", []

    def stop(step, loss):
        if step == 7:
            raise Stopped

    with pytest.raises(Stopped):
        train_generator(SPEC, clips, checkpoint, stop, checkpoint_seconds=0)
    assert torch.load(checkpoint, weights_only=True)["step"] == 6
    resumed = train_generator(SPEC, clips, checkpoint, lambda step, loss: reports.append(step))
    assert reports == list(range(1, SPEC.steps + 1))
    assert torch.equal(weights(resumed), weights(network))


def test_nothing_rare_is_said_before_training(clips):
    with pytest.raises(InputError, match="nothing to generate"):
        train_generator(SPEC.model_copy(update={"fill": 0.1}), clips)


def test_references_are_clips_of_the_machines_other_states(clips):
    states = clips.states
    like, references = choose_references(states, SPEC)
    assert Counter(states[i] for i in like) == rare_states(states, SPEC.fill)
    for i in np.unique(like):
        own = references[like == i]
        assert {states[r].group for r in own} == {states[i].group}
        assert states[i] not in {states[r] for r in own}
        others = sum(s.group == states[i].group and s != states[i] for s in states)
        assert len(set(own)) == min(len(own), others)


# The check


@pytest.fixture(scope="module")
def long_clips(data):
    return clips_of(*data, seconds=1.8)


def verdicts(clips, features, like=None):
    n = np.arange(len(clips.states))
    return check_samples(SPEC, clips, n if like is None else like, band_levels(features))["verdict"]


def crops(clips, share):
    """Log-mels of all clips that begin at a share of what can be the beginning."""
    count = 400 + (clips.frames - 1) * 160
    first = [int(share * (clips.audio.lengths[row] - count)) for row in clips.rows]
    parts = [clips.audio.waveform(int(row), "near", at, count) for row, at in zip(clips.rows, first, strict=True)]
    return fbank(torch.from_numpy(np.stack(parts)))


def test_copies_are_found_wherever_they_begin(long_clips):
    assert set(verdicts(long_clips, crops(long_clips, 0))) == {"copy"}
    assert np.mean(verdicts(long_clips, crops(long_clips, 0.6)) == "copy") > 0.9


def test_noise_and_other_machines_are_far(long_clips):
    n = len(long_clips.states)
    assert set(verdicts(long_clips, torch.randn(n, long_clips.frames, 128))) == {"far"}
    other = (np.arange(n) + 22) % n
    assert {long_clips.states[a].machine == long_clips.states[b].machine for a, b in enumerate(other)} == {False}
    assert set(verdicts(long_clips, crops(long_clips, 0), other)) == {"far"}


def test_most_unheard_real_clips_are_as_near_as_real_ones():
    rng = np.random.default_rng(0)
    spectra = rng.normal(0, 0.1, (2, 256))

    def draw(counts):
        names = np.repeat(["source", "target"], counts)
        gain = rng.normal(0, 0.05, (len(names), 1)) * (np.arange(256) < 128)
        return names, (np.repeat(spectra, counts, axis=0) + gain + rng.normal(0, 0.03, (len(names), 256)))

    states, real = draw([60, 10])
    wanted, samples = draw([20, 20])
    _, distance, own = nearest_clips(samples, wanted, real[:, None], states)
    assert np.mean((distance >= SPEC.copy_below) & (own <= SPEC.far_above)) > 0.9
    assert np.median(distance) == pytest.approx(1, abs=0.2)
    assert np.median(own[wanted == "target"]) == pytest.approx(1, abs=0.2)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=4), st.booleans())
def test_any_number_of_clips_has_distances(counts, equal):
    states = np.repeat(list("abcd")[: len(counts)], counts)
    points = np.random.default_rng(0).normal(size=(len(states), 256)) * (not equal)
    nearest, distance, own = nearest_clips(points + 1e-3, states, points[:, None], states)
    assert np.isfinite(own).all()
    assert (distance > 0).all()
    assert (distance < 0.1).all()
    assert equal or (nearest == np.arange(len(states))).all()


def test_a_machine_with_at_most_two_clips_of_each_state_is_checked(place, data, tmp_path):
    seen, kept = Counter(), []
    for state, machine, split in zip(states_of(data[0]), *data[0].select(["machine", "split"]), strict=True):
        few = (machine.as_py(), split.as_py()) == ("rotor", "train")
        seen[state] += few
        kept.append(not few or seen[state] <= (1 if state.domain == "target" else 2))
    index, spec = data[0].filter(pa.array(kept)), SPEC.model_copy(update={"crop_seconds": 2.0})
    clips = clips_of(index, open_cache(place / "data", index, place / "few"), spec.crop_seconds)
    assert {n for s, n in Counter(clips.states).items() if s.machine == "rotor"} == {1, 2}
    generate(spec, train_generator(spec, clips), clips, tmp_path / "set")
    assert "rotor" in rows(tmp_path / "set")["machine"].to_pylist()
    assert np.isfinite(rows(tmp_path / "set")["own_distance"].to_numpy()).all()


# The set on disk


def judged(folder, tmp_path, verdict):
    """A copy of a set whose samples have these verdicts."""
    copy, table = shutil.copytree(folder, tmp_path / "set"), rows(folder)
    position = table.schema.get_field_index("verdict")
    pq.write_table(table.set_column(position, "verdict", pa.array(verdict)), copy / "rows.parquet")
    return copy


def test_branches_get_the_accepted_samples(folder, tmp_path):
    n = rows(folder).num_rows
    copy = judged(folder, tmp_path, ["far", "accepted"] * (n // 2) + ["copy"] * (n % 2))
    table, samples = accepted_samples(copy)
    assert table.equals(rows(copy).take(list(range(1, n, 2))))
    np.testing.assert_array_equal(samples, features(folder)[1::2])


@pytest.mark.parametrize("name", ["features.npy", "rows.parquet"])
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
        accepted_samples(copy)
    assert "\n" not in str(error.value)


def test_a_set_in_which_hardly_anything_passed_is_refused(folder, tmp_path):
    copy = judged(folder, tmp_path, ["far"] * (rows(folder).num_rows - 1) + ["accepted"])
    with pytest.raises(InputError, match=r"1 passed the check \(1 accepted, \d+ far\)"):
        accepted_samples(copy)
