import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from branches.data import synthetic
from branches.data.synthetic import DEFAULT, DEMO, SyntheticClip, SyntheticSize, render, write_dataset
from branches.data.synthetic_machines import MACHINES, RATE, Operation
from scoring.errors import InputError

TINY = SyntheticSize(train_source=4, train_target=2, test_per_cell=3, seconds=1.0)
NAME = re.compile(r"section_00_(source|target)_(train|test)_(normal|anomaly)_(\d{4})_(\w+)\.wav")
FAULTS = [(machine, fault) for machine in MACHINES for fault in MACHINES[machine].faults]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthetic") / "data"
    assert write_dataset(root, TINY) == len(MACHINES) * 18
    return root


def wavs(root):
    return {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*.wav"))}


def bands(signal):
    """Log power in 64 bands: mean and standard deviation over frames."""
    frames = np.lib.stride_tricks.sliding_window_view(signal, 1024)[::512] * np.hanning(1024)
    power = np.abs(np.fft.rfft(frames)[:, 1:]) ** 2
    logs = np.log(power.reshape(len(frames), 64, 8).mean(2) + 1e-6)
    return np.concatenate([logs.mean(0), logs.std(0)])


def test_names_counts_and_numbers_follow_the_challenge(root):
    for machine in MACHINES:
        cells = {}
        for path in (root / machine).rglob("*.wav"):
            domain, split, condition, number, _ = NAME.fullmatch(path.name).groups()
            assert path.parent.name == split
            cells.setdefault((split, domain, condition), []).append(int(number))
        expected = {("train", "source", "normal"): 4, ("train", "target", "normal"): 2}
        expected |= {("test", d, c): 3 for d in ("source", "target") for c in ("normal", "anomaly")}
        assert {cell: sorted(numbers) for cell, numbers in cells.items()} == {
            cell: list(range(count)) for cell, count in expected.items()
        }


def test_the_default_size_is_the_challenges_own():
    assert SyntheticSize(990, 10, 50, 10.0) == DEFAULT
    assert (DEMO.clips("train", "source"), DEMO.clips("train", "target")) == (90, 10)
    assert DEMO.clips("test", "source") == DEMO.clips("test", "target") == 25


def test_faults_are_no_fainter_than_the_faintest(monkeypatch):
    heard = []

    def source(op):
        heard.append(op.severity)
        return np.zeros(op.samples)

    monkeypatch.setattr(synthetic, "MACHINES", {"rotor": replace(MACHINES["rotor"], source_signal=source)})
    for faintest in (0.0, 0.3):
        for number in range(40):
            render(SyntheticClip("rotor", "test", "source", "anomaly", number), 0.1, faintest=faintest)
    plain, louder = np.array(heard).reshape(2, 40)
    assert plain.min() < 0.1
    np.testing.assert_allclose(louder, 0.3 + 0.7 * plain)
    for wrong in (-0.1, 1.0):
        with pytest.raises(InputError, match="faintest is"):
            SyntheticSize(1, 1, 1, 1.0, wrong)


def test_names_tell_the_attributes_of_machines_that_have_them(root):
    for name, machine in MACHINES.items():
        told = {NAME.fullmatch(path.name)[5] for path in (root / name / "train").iterdir()}
        states = {
            "_".join(f"{key}_{value}" for key, value in state.items()) for state in [*machine.source, *machine.target]
        }
        assert told == (states if machine.attributes else {"noAttribute"})


def test_the_target_domain_is_another_state_or_another_room():
    for machine in MACHINES.values():
        new = [state for state in machine.target if state not in machine.source]
        assert new
        if machine.attributes:
            assert new == list(machine.target)
        else:
            assert machine.other_room


def test_files_are_two_channels_of_16_khz_pcm_16_at_a_sane_level(root):
    for path in root.rglob("*.wav"):
        info = soundfile.info(path)
        assert (info.channels, info.samplerate, info.subtype, info.frames) == (2, RATE, "PCM_16", RATE)
        samples, _ = soundfile.read(path)
        assert np.abs(samples).max() < 0.99
        assert -46 < 20 * np.log10(samples[:, 0].std()) < -14


def test_a_machines_files_do_not_depend_on_the_others_nor_on_order(root, tmp_path):
    write_dataset(tmp_path / "some", TINY, machines=["valve", "pump"])
    some = wavs(tmp_path / "some")
    assert len(some) == 36
    everything = wavs(root)
    assert all(everything[name] == content for name, content in some.items())


def test_another_seed_is_another_data_set(root, tmp_path):
    write_dataset(tmp_path, TINY, seed=1, machines=["valve"])
    other, first = wavs(tmp_path), wavs(root)
    assert all(first[name] != content for name, content in other.items())


def test_no_two_clips_are_alike(root):
    assert max(Counter(wavs(root).values()).values()) == 1


@pytest.mark.parametrize("name", list(MACHINES))
def test_the_far_microphone_hears_less_machine_and_more_hall(name, monkeypatch):
    machine, clip = MACHINES[name], SyntheticClip(name, "train", "source", "normal", 0)
    power = {}
    for heard, altered in {
        "machine": replace(machine, ambient=0.0),
        "hall": replace(machine, source_signal=lambda op: np.zeros(op.samples)),
    }.items():
        monkeypatch.setattr(synthetic, "MACHINES", {name: altered})
        # The random gain differs between the two renderings, but is the same in both channels.
        power[heard] = (render(clip, 2.0) ** 2).mean(0)
    near, far = 10 * np.log10(power["machine"] / power["hall"])
    assert near > far + 6


def test_the_microphones_are_synchronous():
    heard = render(SyntheticClip("valve", "train", "source", "normal", 0), 2.0)
    spectra = np.fft.rfft(heard, 2 * len(heard), axis=0)
    lag = np.argmax(np.abs(np.fft.irfft(spectra[:, 1] * spectra[:, 0].conj())))
    assert lag == round(2 / 343 * RATE)  # two metres of extra path


@pytest.mark.parametrize(("name", "fault"), FAULTS)
def test_a_severe_fault_moves_the_sound_beyond_the_spread_of_normal_clips(name, fault):
    machine = MACHINES[name]

    def sounds(**wrong):
        ops = [Operation(np.random.default_rng(i), RATE * 2, machine.source[0], **wrong) for i in range(12)]
        return np.array([bands(machine.source_signal(op)) for op in ops])

    normal = sounds()
    # A fault draws no random numbers of its own, so the difference between pairs is the fault and nothing else.
    shift = np.abs((sounds(fault=fault, severity=1.0) - normal).mean(0)) / (normal.std(0) + 0.02)
    assert shift.max() > 1


def test_a_fault_without_severity_is_no_fault():
    machine = MACHINES["gearbox"]
    signals = [
        machine.source_signal(Operation(np.random.default_rng(0), RATE, machine.source[0], fault))
        for fault in (None, "wear", "hunting", "eccentric")
    ]
    assert all(np.array_equal(signals[0], signal) for signal in signals[1:])


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=f"{re.escape(str(tmp_path))} already exists.*remove it or name another"):
        write_dataset(tmp_path, TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_in_the_folders_place_is_refused(tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(InputError, match="already exists"):
        write_dataset(tmp_path / "data", TINY)


@pytest.mark.parametrize("machines", [["rotor", "toaster"], []])
def test_unknown_machines_are_refused_with_the_known_ones(tmp_path, machines):
    with pytest.raises(InputError, match=r"unknown machine (toaster|\(none given\)); choose from rotor, valve"):
        write_dataset(tmp_path / "data", TINY, machines=machines)
    assert not (tmp_path / "data").exists()


def test_a_negative_seed_is_refused(tmp_path):
    with pytest.raises(InputError, match="seed is -1"):
        write_dataset(tmp_path, TINY, seed=-1)


@pytest.mark.parametrize(
    "wrong",
    [{"train_source": 0}, {"train_target": -1}, {"test_per_cell": 0}, {"seconds": 0.5}, {"seconds": float("nan")}],
)
def test_sizes_that_make_no_data_set_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        replace(TINY, **wrong)
