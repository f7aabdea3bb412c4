"""A generated data set in the layout of DCASE Task 2 (2026): machines, rooms, domains and faults.

    tutti data synth DIR

Each clip is a machine's source signal (`branches.data.synthetic_machines`) heard by a near and a far microphone in
the same room, together with ambient noise from elsewhere in it. A clip depends on its own name and the seed
alone, so machines can be generated in any order or one at a time.
"""

import logging
import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft, rfftfreq

from branches.audio import write_wav
from branches.data.synthetic_machines import MACHINES, RATE, Machine, OperatingState, Operation, Signal, slow
from scoring.clip_names import ClipName
from scoring.errors import InputError, counted

log = logging.getLogger(__name__)

LEVEL = 0.05  # a source of unit RMS arrives at about −26 dBFS
TAIL = 1536  # samples of a room response; the same number is rendered ahead of the clip and cut off
CELLS = [  # split, domain, condition, in the order of the files
    ("train", "source", "normal"),
    ("train", "target", "normal"),
    ("test", "source", "normal"),
    ("test", "source", "anomaly"),
    ("test", "target", "normal"),
    ("test", "target", "anomaly"),
]


@dataclass(frozen=True)
class SyntheticSize:
    """Clips per machine and their length."""

    train_source: int
    """Normal training clips of the source domain."""
    train_target: int
    """Normal training clips of the target domain."""
    test_per_cell: int
    """Test clips for each domain × condition (four cells)."""
    seconds: float
    """Length of every clip, at least 1 s."""
    faintest: float = 0.0
    """Severity of the faintest fault, from 0 (few can be heard) to below 1."""

    def __post_init__(self) -> None:
        """Refuse sizes that make no data set (`InputError`)."""
        for field in fields(self)[:3]:
            if getattr(self, field.name) < 1:
                raise InputError(f"{field.name} is {getattr(self, field.name)}; give at least 1 clip")
        if not 1 <= self.seconds < float("inf"):
            raise InputError(f"seconds is {self.seconds}; give at least 1")
        if not 0 <= self.faintest < 1:
            raise InputError(f"faintest is {self.faintest}; give 0 or more, below 1")

    def clips(self, split: str, domain: str) -> int:
        """Clips in one cell of the data set."""
        if split == "test":
            return self.test_per_cell
        return self.train_source if domain == "source" else self.train_target


DEFAULT = SyntheticSize(train_source=990, train_target=10, test_per_cell=50, seconds=10.0)  # the challenge's
DEMO = SyntheticSize(train_source=90, train_target=10, test_per_cell=25, seconds=4.0, faintest=0.3)


@dataclass(frozen=True)
class SyntheticClip:
    """Identity of one clip; everything in its file follows from this and the seed."""

    machine: str
    split: str
    domain: str
    condition: str
    number: int

    def rng(self, seed: int) -> np.random.Generator:
        """The clip's own generator, independent of all other clips'."""
        return _rng(seed, self.machine, self.split, self.domain, self.condition, str(self.number))

    def state(self) -> OperatingState:
        """Operating state; the domain's states take turns."""
        machine = MACHINES[self.machine]
        states = machine.source if self.domain == "source" else machine.target
        return states[self.number % len(states)]

    def file_name(self) -> str:
        """Name in the challenge's form, e.g. `section_00_source_train_normal_0007_spd_1.wav`."""
        state = self.state() if MACHINES[self.machine].attributes else {}
        attributes = tuple((key, str(value)) for key, value in state.items())
        return ClipName(0, self.domain, self.split, self.condition, attributes).file_name(self.number)


def write_dataset(root: Path, size: SyntheticSize = DEMO, seed: int = 0, machines: Sequence[str] | None = None) -> int:
    """Write a generated data set and return the number of clips written.

    Files are `<root>/<machine>/{train,test}/section_00_….wav` (16 kHz, PCM 16, channel 0 near, channel 1
    far). The same seed, size and machine give the same samples whatever else is generated. `machines` is a selection of
    `MACHINES`; None means all.

    Raises InputError if `root` is not a new or empty folder, a machine is unknown or the seed is negative.
    """
    names = list(dict.fromkeys(MACHINES if machines is None else machines))
    _check(root, seed, names)
    new = not root.exists()
    try:
        return sum(_write_machine(root, name, size, seed) for name in names)
    except BaseException:  # a part of it would look like a whole one, and keep the next try from this place
        for name in names:
            shutil.rmtree(root / name, ignore_errors=True)
        if new:
            shutil.rmtree(root, ignore_errors=True)
        raise


def render(clip: SyntheticClip, seconds: float, seed: int = 0, faintest: float = 0.0) -> NDArray[np.float32]:
    """Samples of one clip in [−1, 1], shape (samples, 2): near and far microphone; `faintest` as in `SyntheticSize`."""
    rng = clip.rng(seed)
    machine = MACHINES[clip.machine]
    fault, severity = None, 0.0
    if clip.condition == "anomaly":
        # The power makes faint faults common: no detector finds all, and the strong ones are plain to hear.
        fault = str(rng.choice(machine.faults))
        severity = faintest + (1 - faintest) * float(rng.uniform(0.05, 1) ** 1.5)
    samples = round(seconds * RATE) + TAIL
    op = Operation(rng, samples, clip.state(), fault, severity)
    responses = _room(_room_name(clip, machine), samples, seed)
    channels = _at_microphones(op, machine.source_signal(op), _ambient(op, machine), responses)
    # The microphone gain is fixed up to ±1.5 dB, so loudness tells something, as in the field.
    gain = LEVEL * 10 ** (rng.uniform(-1.5, 1.5) / 20)
    channels *= min(gain, 0.98 / np.abs(channels).max())
    return channels


def _check(root: Path, seed: int, names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in MACHINES]
    if unknown or not names:
        given = ", ".join(unknown) or "(none given)"
        raise InputError(f"unknown machine {given}; choose from {', '.join(MACHINES)}")
    if seed < 0:
        raise InputError(f"seed is {seed}; give 0 or more")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"{root} already exists and is not an empty folder; remove it or name another")


def _write_machine(root: Path, name: str, size: SyntheticSize, seed: int) -> int:
    for split in ("train", "test"):
        (root / name / split).mkdir(parents=True)
    clips = list(_clips(name, size))
    for clip in clips:
        path = root / name / clip.split / clip.file_name()
        write_wav(path, render(clip, size.seconds, seed, size.faintest), "PCM_16")
    log.info("%s: %s of %g s", name, counted(len(clips), "clip"), size.seconds)
    return len(clips)


def _clips(name: str, size: SyntheticSize) -> Iterator[SyntheticClip]:
    for split, domain, condition in CELLS:
        for number in range(size.clips(split, domain)):
            yield SyntheticClip(name, split, domain, condition, number)


def _rng(seed: int, *identity: str) -> np.random.Generator:
    # crc32 rather than hash(): the latter changes with every Python process.
    words = [zlib.crc32(part.encode()) for part in identity]
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=words))


def _room_name(clip: SyntheticClip, machine: Machine) -> str:
    return f"{clip.machine} {clip.domain if machine.other_room else 'source'}"


@cache
def _room(name: str, samples: int, seed: int) -> NDArray[np.complex64]:
    """Transfer functions (2 sources, 2 microphones, bins): the machine and the ambient noise to near and far.

    A response is a direct path and a tail of Gaussian noise that decays by 60 dB in the reverberation time
    (Polack's model). The far microphone is 2 m further away: weaker and later direct sound, the same tail.
    """
    rng = _rng(seed, "room", name)
    time = np.arange(TAIL) / RATE
    decay = np.exp(-6.9 * time / rng.uniform(0.15, 0.35))
    responses = rng.normal(size=(2, 2, TAIL)) * decay / np.sqrt((decay**2).sum())
    responses *= np.array([[[0.25], [0.25]], [[1.0], [2.0]]])
    responses[0, 0, 0] += 1.0
    responses[0, 1, round(2 / 343 * RATE)] += 0.4
    return np.asarray(rfft(responses.astype(np.float32), next_fast_len(samples, real=True)))


def _ambient(op: Operation, machine: Machine) -> Signal:
    """Noise from the rest of the hall: pink, its level drifting, differently loud in every clip."""
    length = next_fast_len(op.samples, real=True)
    hz = rfftfreq(length, 1 / RATE)
    white = rfft(op.rng.standard_normal(length, dtype=np.float32))
    pink = irfft(white / np.sqrt(np.maximum(hz, 40) / 250, dtype=np.float32), length)[: op.samples]
    level = machine.ambient * np.exp(0.25 * op.rng.normal() + 0.2 * slow(op, 2))
    return np.asarray(level * pink)


def _at_microphones(
    op: Operation, source: Signal, ambient: Signal, responses: NDArray[np.complex64]
) -> NDArray[np.float32]:
    length = next_fast_len(op.samples, real=True)
    spectra = rfft(np.stack([source, ambient]).astype(np.float32), length)
    # Only the first TAIL samples see the wrap-around of the circular convolution, and those are cut off.
    channels = irfft((spectra[:, None] * responses).sum(0), length)[:, TAIL : op.samples]
    channels += 0.01 * op.rng.standard_normal(channels.shape, np.float32)  # microphone noise, not shared by the two
    return np.ascontiguousarray(channels.T)
