import re
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from branches.data import synthetic
from branches.data.dataset import counts, read_index
from branches.data.synthetic import DEFAULT, DEMO, SyntheticClip, SyntheticSize, render, write_dataset
from branches.data.synthetic_machines import MACHINES, RATE, Operation
from scoring.errors import InputError

TINY = SyntheticSize(train_source=4, train_target=2, test_per_cell=1, seconds=1.0)
# Standard deviations of an anomalous target clip, near and far, and the product with noise of the machine's own sound
# and of what each fault adds.
SOUNDS = {
    "rotor": [4.0997, 2.6502, -0.4649, -0.4248, 0.1203, 0.1629, -0.1806],
    "valve": [2.5401, 1.6786, 0.6498, -0.4874, -0.5424, 0.3411, -0.6779, 0.0494],
    "gearbox": [4.1135, 1.8742, -1.0512, -0.8494, 0.2993, 0.0715, -0.3476, 0.7776],
    "pump": [7.2997, 4.0514, 2.5490, -0.2206, -0.0898, -0.0623, 0.3197],
    "slider": [5.7631, 3.1064, 0.8169, -0.0349, 0.4002, 0.1409, -0.0859, -0.4631],
}


def test_files_have_the_challenges_names_and_form_and_depend_on_their_name_and_the_seed_alone(tmp_path):
    root = tmp_path / "all"
    assert write_dataset(root, TINY) == len(MACHINES) * 10
    clips = read_index(root)
    cells = {f"test {domain} {condition}": 1 for domain in ("source", "target") for condition in ("normal", "anomaly")}
    kinds = {"sections": 1, "train source": 4, "train target": 2, **cells}
    assert counts(clips) == dict.fromkeys(sorted(MACHINES), kinds)
    told = {name: set() for name in MACHINES}
    for clip in clips.to_pylist():
        info = soundfile.info(root / clip["path"])
        assert (info.channels, info.samplerate, info.subtype, info.frames) == (2, 16_000, "PCM_16", 16_000)
        told[clip["machine"]] |= {str(dict(clip["attributes"]))} if clip["split"] == "train" else set()
    for name, machine in MACHINES.items():
        states = {str({key: str(value) for key, value in s.items()}) for s in (*machine.source, *machine.target)}
        assert told[name] == (states if machine.attributes else {"{}"})
        new = [state for state in machine.target if state not in machine.source]
        assert new == list(machine.target) if machine.attributes else new and machine.other_room
    write_dataset(tmp_path / "some", TINY, machines=["valve", "pump", "valve"])
    write_dataset(tmp_path / "other", TINY, seed=1, machines=["valve"])
    everything, some, other = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.wav")}
        for folder in (root, tmp_path / "some", tmp_path / "other")
    )
    assert some == {name: content for name, content in everything.items() if name.parts[0] in ("valve", "pump")}
    assert len({*everything.values(), *other.values()}) == 60  # no two are alike


@pytest.mark.parametrize("name", MACHINES)
def test_sounds_are_those_that_figures_were_measured_on(name):
    machine = MACHINES[name]

    def signal(fault, severity, state=machine.target[-1]):
        return machine.source_signal(Operation(np.random.default_rng(0), RATE, state, fault, severity))

    heard = render(SyntheticClip(name, "test", "target", "anomaly", 1), 1.0).std(axis=0) * 100
    noise = np.random.default_rng(1).normal(size=RATE) / 100
    faults = [(signal(fault, 1.0) - signal(fault, 0.0)) @ noise for fault in machine.faults]
    assert [*heard, signal(None, 1.0) @ noise, *faults] == pytest.approx(SOUNDS[name], abs=5e-4)
    assert all(np.array_equal(signal(None, 1.0), signal(fault, 0.0)) for fault in machine.faults)


def test_faults_are_no_fainter_than_the_faintest_and_nothing_is_clipped(monkeypatch):
    severities = []

    def loud(op):
        severities.append(op.severity)
        return np.full(op.samples, 99.0)

    monkeypatch.setattr(synthetic, "MACHINES", {"rotor": replace(MACHINES["rotor"], source_signal=loud)})
    for faintest in (0.0, 0.3):
        for number in range(40):
            clip = SyntheticClip("rotor", "test", "source", "anomaly", number)
            assert np.abs(render(clip, 0.1, faintest=faintest)).max() == pytest.approx(0.98)
    plain, louder = np.array(severities).reshape(2, 40)
    assert 0.01 < plain.min() < 0.1
    np.testing.assert_allclose(louder, 0.3 + 0.7 * plain)


def test_what_cannot_be_made_is_refused_and_nothing_touched(tmp_path):
    for size, settings, message in (
        ({"train_source": 0}, {}, "train_source is 0; give at least 1 clip"),
        ({"train_target": -1}, {}, "train_target is -1"),
        ({"test_per_cell": 0}, {}, "test_per_cell is 0"),
        ({"seconds": 0.5}, {}, "seconds is 0.5; give at least 1"),
        ({"seconds": float("nan")}, {}, "seconds is nan"),
        ({"faintest": -0.1}, {}, "faintest is -0.1; give 0 or more, below 1"),
        ({"faintest": 1.0}, {}, "faintest is 1.0"),
        ({}, {"machines": ["rotor", "toaster"]}, "unknown machine toaster; choose from rotor, valve"),
        ({}, {"machines": []}, r"unknown machine \(none given\); choose from rotor"),
        ({}, {"seed": -1}, "seed is -1; give 0 or more"),
    ):
        with pytest.raises(InputError, match=f"^{message}"):
            write_dataset(tmp_path / "data", replace(TINY, **size), **settings)
    (tmp_path / "notes.txt").write_text("mine")
    for taken in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(InputError, match=f"^{re.escape(str(taken))} already exists.*remove it or name another$"):
            write_dataset(taken, TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert SyntheticSize(990, 10, 50, 10.0) == DEFAULT  # the challenge's own
    assert SyntheticSize(90, 10, 25, 4.0, 0.3) == DEMO
