"""`small`: the file that comes with tutti, and refused when it is another one."""

import hashlib

import pytest
import torch

from branches import checkpoint_files
from branches.beats import load_beats
from scoring.errors import InputError


def test_small_is_the_released_file():
    assert hashlib.sha256(checkpoint_files.SMALL.read_bytes()).hexdigest() == checkpoint_files.SMALL_SHA256
    model = load_beats("small", checkpoint_files.SMALL_SHA256[:8])
    clips = torch.randn(2, 16_000, generator=torch.Generator().manual_seed(0)) * 0.05
    x, _ = model(clips)
    assert x.shape == (2, 48, 128)
    assert x.isfinite().all()


@pytest.mark.parametrize("damage", [lambda content: content[:-1000], lambda content: content + b"0", None])
def test_another_file_in_place_of_small_is_refused(damage, tmp_path, monkeypatch):
    other = tmp_path / "small.pt"
    if damage is not None:
        other.write_bytes(damage(checkpoint_files.SMALL.read_bytes()))
    monkeypatch.setattr(checkpoint_files, "SMALL", other)
    with pytest.raises(InputError, match=r"is not the file that comes with tutti; reinstall tutti$"):
        load_beats("small")


def test_small_of_another_version_is_refused():
    with pytest.raises(InputError, match=r"not 00000000…: it is of another version of tutti$"):
        load_beats("small", "0" * 8)
