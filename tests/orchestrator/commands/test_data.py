import json
import shutil

import pytest

from branches.data.synthetic import SyntheticSize
from tests.commands import checksums, tutti_here


@pytest.fixture
def small(monkeypatch):
    """The demo's data set with fewer clips."""
    monkeypatch.setattr("branches.data.synthetic.DEMO", SyntheticSize(3, 2, 1, 1.0))


def test_a_data_set_is_made_checked_and_not_overwritten(small, tmp_path):
    made = tutti_here("data", "synth", tmp_path / "data", "--seed", 3)
    assert made.exit_code == 0, made.stderr
    checked = tutti_here("data", "check", tmp_path / "data", "--json")
    found = json.loads(checked.stdout)
    assert checked.exit_code == 0
    assert found["problems"] == []
    assert len(found["machines"]) >= 3
    assert made.stdout == f"{found['clips']} clips in {tmp_path / 'data'}\n"
    again = tutti_here("data", "synth", tmp_path / "data")
    assert again.exit_code == 2
    assert len(again.stderr.splitlines()) == 1
    assert tutti_here("data", "synth", tmp_path / "other").exit_code == 0
    assert checksums(tmp_path / "other").items().isdisjoint(checksums(tmp_path / "data").items())


def test_check_names_every_bad_clip(dataset, tmp_path):
    shutil.copytree(dataset / "rotor" / "train", tmp_path / "rotor" / "train")
    clips = sorted((tmp_path / "rotor" / "train").iterdir())
    clips[0].write_bytes(b"")
    clips[1].write_bytes(clips[1].read_bytes()[:5000])
    run = tutti_here("data", "check", tmp_path)
    assert run.exit_code == 2
    assert clips[0].name in run.stderr
    assert f"{clips[1].name}: truncated" in run.stderr
    assert f"Error: {tmp_path}: 2 of 13 clips cannot be used" in run.stderr
