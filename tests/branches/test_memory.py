import resource

import numpy as np
import pytest
import torch

from branches.beats import load_beats
from branches.beats.memory import TooLong, available_memory, check_attention_memory
from branches.model import batches_of_like_length


def test_a_clip_of_hours_is_refused_before_its_memory_is_taken():
    with pytest.raises(TooLong, match=r"3600 s are too long .* needs .* GB are free; cut it into clips"):
        load_beats("tiny").encode(torch.zeros(1, 360_000, 128))


def test_ten_seconds_fit_everywhere():
    check_attention_memory(12, 1_000)


def test_the_limit_of_the_process_counts(monkeypatch):
    assert available_memory() > 0
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1, -1))
    assert available_memory() == 0


@pytest.mark.parametrize("seconds", [[1] * 40, [10] * 40, [30] * 20, [1] * 20 + [60] * 3, [600, 5]])
def test_batches_hold_every_clip_once_and_no_more_than_their_attention_allows(seconds):
    lengths = np.array(seconds) * 16_000
    batches = list(batches_of_like_length(lengths, 32))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for rows in batches:
        assert len(rows) == 1 or len(rows) * max(10, max(seconds[i] for i in rows)) ** 2 <= 32 * 10**2
