"""`small`: made from its seed alone, in the released format, and refused when its file is another one."""

import hashlib

import numpy as np
import pytest
import torch

from branches import checkpoint_files, pretraining
from branches.beats import load_beats
from branches.pretraining import SMALL, alter, clips_of_machine, contrast, draw_machine, main, untrained
from scoring.errors import InputError


def test_a_network_follows_from_its_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining, "BATCH", 2)
    for name, seed in (("a.pt", 1), ("b.pt", 1), ("c.pt", 2)):
        main([str(tmp_path / name), "--seed", str(seed), "--machines", "2", "--steps", "2"])
    a, b, c = (load_beats(tmp_path / f"{name}.pt").state_dict() for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)
    start = untrained(1).half().float().state_dict()
    assert not torch.equal(a["encoder.layers.0.fc1.weight"], start["encoder.layers.0.fc1.weight"])
    assert (tmp_path / "a.pt").stat().st_size < 3e6
    saved = torch.load(tmp_path / "a.pt", weights_only=True)
    assert saved.keys() == {"cfg", "model"}


def test_clips_of_a_machine_depend_on_seed_and_number():
    first = clips_of_machine(0, 5)
    assert np.array_equal(first, clips_of_machine(0, 5))
    assert np.isfinite(first).all()
    assert np.abs(first).max() <= 1
    for other in (clips_of_machine(0, 6), clips_of_machine(1, 5)):
        assert not np.allclose(first, other)


def test_an_alteration_changes_one_part():
    for number in range(30):
        rng = np.random.default_rng(number)
        machine = draw_machine(rng)
        altered = alter(machine, rng)
        kept = [part for part in altered.parts if any(part is other for other in machine.parts)]
        assert len(kept) >= len(machine.parts) - 1
        assert len(kept) < max(len(machine.parts), len(altered.parts))


def test_contrast_is_least_where_classes_are_apart():
    classes = torch.tensor([0, 0, 1, 1])
    apart = torch.eye(2)[classes]
    assert contrast(apart, classes) < 1e-3
    assert contrast(apart, torch.tensor([0, 1, 0, 1])) > 5


def test_small_is_the_released_file():
    model = load_beats("small")
    assert model.config == SMALL
    assert not model.training
    assert hashlib.sha256(checkpoint_files.SMALL.read_bytes()).hexdigest() == checkpoint_files.SMALL_SHA256
    assert checkpoint_files.SMALL.stat().st_size <= 3e6
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
    assert load_beats("small", checkpoint_files.SMALL_SHA256[:8]).config == SMALL
    with pytest.raises(InputError, match=r"not 00000000…: it is of another version of tutti$"):
        load_beats("small", "0" * 8)
