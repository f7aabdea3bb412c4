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

from branches.audio.cache import AudioCache
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
def clips(audio, index):
    return real_clips(audio, index, "near", SPEC.crop_seconds, "cpu")


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


def test_rare_states_get_the_samples_they_lack(clips, folder):
    made, wanted = rows(folder), rare_states(clips.states, SPEC.fill)
    assert Counter(states_of(made)) == wanted
    assert features(folder).shape == (made.num_rows, clips.frames, 128)
    assert features(folder).dtype == np.float16
    assert np.isfinite(features(folder)).all()
    for column in ("reference", "nearest"):
        assert set(made[column].to_pylist()) <= set(clips.index["clip"].to_pylist())
    distance, own = made["nearest_distance"].to_numpy(), made["own_distance"].to_numpy()
    expected = np.where(distance < SPEC.copy_below, "copy", np.where(own > SPEC.far_above, "far", "accepted")).tolist()
    assert made["verdict"].to_pylist() == expected
    check = json.loads((folder / "check.json").read_text())
    assert check["spec"] == SPEC.model_dump()
    counted = {name: (c["clips"], c["samples"]) for name, c in check["operating_states"].items()}
    assert counted == {str(s): (clips.states.count(s), n) for s, n in wanted.items()}
    told = [verdict for c in check["operating_states"].values() for verdict in VERDICTS for _ in range(c[verdict])]
    assert sorted(told) == sorted(expected)


def test_samples_depend_on_the_seed_and_the_training_clips_alone(index, audio, network, clips, folder, tmp_path):
    samples = audio.samples.copy()
    for clip in np.flatnonzero(index["split"].to_numpy() == "test"):
        samples[audio.start[clip] : audio.start[clip + 1]] = 12345
    deaf = real_clips(AudioCache(samples, audio.start, audio.channels), index, "near", SPEC.crop_seconds, "cpu")
    again, other = train_generator(SPEC, deaf), SPEC.model_copy(update={"seed": 1})
    generate(SPEC, again, deaf, tmp_path / "again")
    np.testing.assert_array_equal(features(folder), features(tmp_path / "again"))
    assert rows(folder).equals(rows(tmp_path / "again"))
    generate(other, network, clips, tmp_path / "again")  # in place of the first
    assert not np.array_equal(features(folder), features(tmp_path / "again"))
    assert [p.name for p in tmp_path.iterdir()] == ["again"]
    assert not torch.equal(network.leave.weight, train_generator(other, clips).leave.weight)


def test_a_resumed_training_ends_bit_for_bit_the_same(clips, network, tmp_path):
    def stop(step, loss):
        if step == 7:
            raise KeyboardInterrupt

    checkpoint, reports = tmp_path / "generator.pt", []
    with pytest.raises(KeyboardInterrupt):
        train_generator(SPEC, clips, checkpoint, stop, checkpoint_seconds=0)
    resumed = train_generator(SPEC, clips, checkpoint, lambda step, loss: reports.append(step))
    assert reports == list(range(1, SPEC.steps + 1))
    assert torch.equal(resumed.leave.weight, network.leave.weight)


def test_nothing_rare_is_said_before_training(clips):
    with pytest.raises(InputError, match=r"no operating state has less than 0.1 of the clips .* nothing to generate"):
        train_generator(SPEC.model_copy(update={"fill": 0.1}), clips)


def test_references_are_clips_of_the_machines_other_states(clips):
    states = clips.states
    like, references = choose_references(states, SPEC)
    assert Counter(states[i] for i in like) == rare_states(states, SPEC.fill)
    for i in np.unique(like):
        own = references[like == i]
        others = [r for r, s in enumerate(states) if s.group == states[i].group and s != states[i]]
        assert set(own) <= set(others)
        assert len(set(own)) == min(len(own), len(others))


def test_copies_noise_and_other_machines_are_found(audio, index):
    clips = real_clips(audio, index, "near", 0.9, "cpu")
    each, count = np.arange(len(clips.states)), 400 + (clips.frames - 1) * 160

    def verdicts(features, like=each):
        return check_samples(SPEC, clips, like, band_levels(features))["verdict"].tolist()

    def crops(first):
        parts = [audio.waveform(int(row), "near", first, count) for row in clips.rows]
        return fbank(torch.from_numpy(np.stack(parts)))

    assert set(verdicts(crops(0))) == {"copy"}
    assert verdicts(crops(1_000)).count("copy") > 0.9 * len(each)
    assert set(verdicts(torch.randn(len(each), clips.frames, 128))) == {"far"}
    assert set(verdicts(crops(0), np.roll(each, 13))) == {"far"}  # of the other machine


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=4), st.booleans(), st.integers(0, 99))
def test_distances_are_those_of_the_definition_for_any_number_of_clips(counts, copies, seed):
    rng, states = np.random.default_rng(seed), np.repeat(list("abcd")[: len(counts)], counts)
    windows = [rng.normal(size=(rng.integers(1, 4), 256)) * (not copies) for _ in states]
    wanted, samples = rng.choice(states, 6), rng.normal(size=(6, 256))

    def far(point, clip):
        return np.linalg.norm(windows[clip] - point, axis=1).min()

    def usual(clips):
        """The median of the distances from clips to their nearest neighbours."""
        return np.median([min(far(windows[a][0], b) for b in clips if b != a) for a in clips])

    of_machine = usual(range(len(states))) or 1.0
    made = nearest_clips(samples, wanted, windows, states)
    for sample, state, found, distance, own in zip(samples, wanted, *made, strict=True):
        each, clips = np.array([far(sample, clip) for clip in range(len(states))]), np.flatnonzero(states == state)
        of_state = (len(clips) >= 3 and usual(clips)) or of_machine
        assert each[found] == pytest.approx(each.min())
        assert (distance, own) == pytest.approx((each.min() / of_machine, each[clips].min() / of_state))


@pytest.mark.parametrize("passed", [0, 1, 2, 9])
def test_branches_get_the_accepted_samples_if_a_tenth_passed(folder, tmp_path, passed):
    copy, table = shutil.copytree(folder, tmp_path / "set"), rows(folder).take(list(range(9)) * 2)
    verdicts = pa.array((["far", "accepted"] * passed + ["copy"] * 18)[:18])
    table = table.set_column(table.schema.get_field_index("verdict"), "verdict", verdicts)
    pq.write_table(table, copy / "rows.parquet")
    np.save(copy / "features.npy", features(folder)[list(range(9)) * 2])
    if passed < 2:
        with pytest.raises(InputError, match=rf"^of 18 generated samples {passed} passed the check \("):
            accepted_samples(copy)
    else:
        accepted, samples = accepted_samples(copy)
        assert accepted.equals(table.take(list(range(1, 2 * passed, 2))))
        np.testing.assert_array_equal(samples, np.load(copy / "features.npy")[1 : 2 * passed : 2])


@settings(max_examples=20, deadline=None)
@given(name=st.sampled_from(["features.npy", "rows.parquet"]), kept=st.floats(0, 0.99), behind=st.binary(max_size=9))
def test_a_damaged_set_is_named_in_one_line(folder, name, kept, behind):
    content, copy = (folder / name).read_bytes(), folder.with_name("damaged")
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    (copy / name).write_bytes(content[: int(kept * len(content))] + behind)
    with pytest.raises(InputError, match=rf"^{copy}: not a generated set, or damaged [^\n]*; delete it and run again$"):
        accepted_samples(copy)
    (copy / name).unlink()
    with pytest.raises(InputError, match=f"^{copy}: not a generated set"):
        accepted_samples(copy)
