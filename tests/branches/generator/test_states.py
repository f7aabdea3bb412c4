import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from branches.audio.cache import in_memory
from branches.data.dataset import index_of
from branches.frontend import fbank
from branches.generator.states import (
    OperatingState,
    balanced,
    band_levels,
    band_scale,
    rare_states,
    real_clips,
    states_of,
)  # fmt: skip


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


def test_words_are_the_machines_own():
    paths = ["a/train/section_00_source_train_normal_0000_mic_1_mic_2.wav"]
    paths += ["a/train/section_00_target_train_normal_0001_mic_2_mic_1.wav"]
    first, second, third = states_of(index_of([*paths, paths[0].replace("a/", "b/")]))
    assert str(second) == "a/section_00/target/mic=2/mic=1"
    # Only the machine itself is a word that two of these clips share: the same value in another place is another word.
    assert set(first.words()) & set(second.words()) == {"a/section_00"}
    assert set(first.words()).isdisjoint(third.words())
    assert len(set(first.words())) == 4


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
    assert clips.words.sum(dim=1).tolist() == [3, 3, 3]
    chosen = np.array([2, 0, 0])
    _, mean, std = clips.conditioning(chosen)
    heard = fbank(torch.from_numpy(np.stack([recorded[1 + i][:, 1] for i in chosen])))
    torch.testing.assert_close(clips.crops(chosen, rng) * std + mean, heard)
    np.testing.assert_allclose(np.concatenate([clips.levels[i] for i in chosen]), band_levels(heard), atol=1e-4)
