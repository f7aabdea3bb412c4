"""Operating states: how rare they are, what they are called, and how loud their bands are."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from branches.data.dataset import index_of
from branches.generator.states import OperatingState, balanced, band_scale, rare_states, states_of


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 40), min_size=1), st.floats(0.1, 1))
def test_filling_reaches_the_wanted_share_and_no_more(counts, fill):
    paths = [
        f"m/train/section_00_source_train_normal_{k:04d}_x_{value}.wav" for value, n in counts.items() for k in range(n)
    ]
    states = states_of(index_of(paths))
    lacking = {dict(s.attributes)["x"]: n for s, n in rare_states(states, fill).items()}
    largest = max(counts.values())
    for value, n in counts.items():
        assert n + lacking.get(value, 0) == max(n, round(fill * largest))
    times = np.bincount(balanced(states), minlength=len(states))
    assert times.min() == 1 or len(counts) > 1
    assert times.max() == max(1, round((largest / min(counts.values())) ** 0.5))


def test_words_are_the_machines_own():
    first, second, third = states_of(
        index_of(
            [
                "a/train/section_00_source_train_normal_0000_mic_1_mic_2.wav",
                "a/train/section_00_target_train_normal_0001_mic_2_mic_1.wav",
                "b/train/section_00_source_train_normal_0000_mic_1_mic_2.wav",
            ]
        )
    )
    # Only the machine itself is a word that two of these clips share: the same value in another place is another word.
    assert set(first.words()) & set(second.words()) == {"a/section_00"}
    assert set(first.words()).isdisjoint(third.words())
    assert len(set(first.words())) == 4


def test_the_effects_of_words_add_up():
    rng = np.random.default_rng(1)
    effects, counts = {("source", "1"): 0.0, ("source", "2"): 1.0, ("target", "1"): 0.5, ("target", "2"): 9.0}, 200
    states = [OperatingState("a", 0, d, (("x", v),)) for d, v in effects for _ in range(counts)][: 3 * counts + 1]
    level = np.repeat(list(effects.values()), counts)[: len(states)] + rng.normal(0, 0.1, len(states))
    levels = [np.repeat([[m, 0.3]], 128, axis=1).astype(np.float32) for m in level]
    words = np.array([[s.domain == "target", s.attributes[0][1] == "2"] for s in states], np.float32)
    mean, std = (table[:, 0, 0] for table in band_scale(states, words, levels))
    np.testing.assert_allclose(mean[::counts], [0, 1, 0.5, 1.5], atol=0.1)  # one odd clip does not count
    np.testing.assert_allclose(std[: 3 * counts], np.hypot(0.3, (level - mean).std()), rtol=0.01)
