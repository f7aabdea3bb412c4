import numpy as np
import pytest
import soundfile

from branches.data.dataset import index_of
from branches.data.inspection import inspect

TRAIN = [f"fan/train/section_00_source_train_normal_{i:04d}_noAttribute.wav" for i in range(4)]
TEST = [f"fan/test/section_00_source_test_{c}_{i:04d}_noAttribute.wav" for c in ("normal", "anomaly") for i in range(3)]
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, (10, 16_000))


@pytest.fixture
def inspected(tmp_path):
    """Inspects a fan of ten clips, each written as `change(name, samples)` says: samples, and maybe the rate."""

    def fan(change, read=int):
        for samples, name in zip(NOISE, TRAIN + TEST, strict=True):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            changed, rate = change(name, samples)
            soundfile.write(tmp_path / name, changed, rate, subtype="FLOAT")
        return inspect(tmp_path, index_of(TRAIN + TEST), read)

    return fan


def test_what_cannot_be_used_is_a_problem_and_what_looks_wrong_a_note(inspected):
    changes, read = {}, []
    found = inspected(lambda name, x: (x, 16_000), read.append)
    assert found.notes == found.problems == []
    assert found.formats == {"fan": {"sampling rates": "16000 Hz", "channels": "1", "lengths": "1.0 s"}}
    assert read == [1] * 10
    changes = {TRAIN[0]: NOISE[0, :1_000], TRAIN[1]: NOISE[1] * 5, TRAIN[2]: NOISE[3], TEST[0]: np.full(16_000, 0.3)}
    found = inspected(lambda name, x: (changes.get(name, x), 16_000))
    (problem,) = found.problems
    assert problem.endswith(f"{TRAIN[0]}: 0.062 s is shorter than one patch (0.175 s); remove it")
    assert found.notes == [
        f"{TEST[0]}: nothing is heard on channel 0",
        f"{TRAIN[1]}: samples up to 2.5 times full scale (floats that hold integers?)",
        f"{TRAIN[3]}: the same recording as {TRAIN[2]}",
    ]


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (
            lambda name, x: (x, 48_000 if "anomaly" in name else 16_000),
            "fan: sampling rates differ: 16000 Hz in 7 clips, 48000 Hz in 3 clips (all of them test anomaly); "
            "the recording, not the machine, tells which test clips are anomalies",
        ),
        (
            lambda name, x: (np.stack([x, x[::-1]], 1) if "train" in name else x, 16_000),
            "fan: channels differ: 1 in 6 clips, 2 in 4 clips (all of them train)",
        ),
        (
            lambda name, x: (x[: 8_000 if name == TRAIN[1] else None], 16_000),
            "fan: lengths differ: 1.0 s in 9 clips, 0.5 s in 1 clips (all of them train)",
        ),
    ],
)
def test_formats_that_differ_within_a_machine_are_noted(inspected, change, note):
    assert note in inspected(change).notes
