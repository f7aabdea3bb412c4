import resource

import pytest
import torch

from branches.beats import load_beats, memory
from branches.beats.memory import TooLong, available_memory, check_attention_memory


def test_a_clip_whose_pairs_of_patches_do_not_fit_is_refused_before_its_memory_is_taken(monkeypatch):
    with pytest.raises(TooLong, match=r"3600 s are too long .* needs .* GB are free; cut it into clips, or score it"):
        load_beats("tiny").encode(torch.zeros(1, 360_000, 128))
    needed = 2 * 12 * (8 * 100) ** 2 * 4
    monkeypatch.setattr(memory, "available_memory", lambda: needed)
    check_attention_memory(12, 1_600)
    monkeypatch.setattr(memory, "available_memory", lambda: needed - 1)
    with pytest.raises(TooLong, match=r"^16 s are too long .* needs 0.0614 GB, and 0.0614 GB are free"):
        check_attention_memory(12, 1_600)


def test_the_limits_of_container_and_process_count(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    of_the_machine = available_memory()
    for name, content in {"current": "500000", "stat": "anon 7\ninactive_file 20000\n", "max": "900000"}.items():
        (tmp_path / f"memory.{name}").write_text(content)
    assert available_memory() == 420_000
    (tmp_path / "memory.max").write_text("max")
    assert available_memory() == pytest.approx(of_the_machine, rel=0.5)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1, -1))
    assert available_memory() == 0
