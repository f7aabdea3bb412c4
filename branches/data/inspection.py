"""What a person should know of a data set before anything is computed from it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from branches.audio import Header, read_clip, read_header
from scoring.errors import InputError

# Of 16-bit values in a 32-bit file the loudest is 2**-16 of full scale.
_TOO_QUIET = 2.0**-15
_TOO_LOUD = 2.0  # floats may exceed full scale by a little
_ODD_LEVEL = 1_000  # 60 dB: recordings of one machine differ by less, faults included
# What recordings of one machine should have in common: its value by the header, and the unit.
FORMATS: dict[str, tuple[Callable[[Header], float], str]] = {
    "sampling rates": (lambda header: header.rate, " Hz"),
    "channels": (lambda header: header.channels, ""),
    "lengths": (lambda header: round(header.frames / header.rate, 1), " s"),
}


@dataclass(frozen=True)
class Inspection:
    """Lines on clips that cannot be used (`problems`), and on clips that can but look wrong (`notes`).

    formats: of each machine, in words, for each of `FORMATS`
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    formats: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Recording:
    path: str
    kind: str  # e.g. "test anomaly"
    header: Header
    peak: float  # full scale = 1


def inspect(root: Path, index: pa.Table, read: Callable[[int], object] = int) -> Inspection:
    """Read every clip of the index; `read` is called with 1 after each.

    Noted are recordings that stand there twice (among the training and the test clips that makes a score look better
    than it is), silent channels, levels that cannot be, and machines whose recordings differ in rate, channels or
    length: where that goes with the split or the label, a detector learns the recording instead of the machine.
    """
    inspection = Inspection()
    first: dict[bytes, str] = {}
    machines: dict[str, list[_Recording]] = defaultdict(list)
    columns = (index[column].to_pylist() for column in ("path", "machine", "split", "condition"))
    for path, machine, split, condition in zip(*columns, strict=True):
        read(1)
        try:
            samples, header = read_clip(root / path), read_header(root / path)
        except InputError as error:
            inspection.problems.append(str(error))
            continue
        kind = split if split == "train" or condition is None else f"{split} {condition}"
        machines[machine].append(_Recording(path, kind, header, float(np.abs(samples).max())))
        silent = np.flatnonzero(np.ptp(samples, axis=0) == 0)
        if len(silent):
            inspection.notes.append(f"{path}: nothing is heard on channel {', '.join(map(str, silent))}")
            continue
        other = first.setdefault(hashlib.sha256(samples.tobytes()).digest(), path)
        if other != path:
            inspection.notes.append(f"{path}: the same recording as {other}")
    for machine, recordings in machines.items():
        inspection.notes.extend(f"{machine}: {note}" for note in [*_levels(recordings), *_formats(recordings)])
        inspection.formats[machine] = {
            name: _span([value(r.header) for r in recordings], unit) for name, (value, unit) in FORMATS.items()
        }
    return inspection


def _span(values: Sequence[float], unit: str) -> str:
    low, high = min(values), max(values)
    return f"{low}{unit}" if low == high else f"{low}–{high}{unit}"


def _levels(recordings: Sequence[_Recording]) -> list[str]:
    """Notes on levels that are an error of writing, and not the machine's."""
    median = float(np.median([r.peak for r in recordings]))
    loud = [r for r in recordings if r.peak > _TOO_LOUD]
    quiet = [r for r in recordings if 0 < r.peak < _TOO_QUIET and r.header.subtype != "PCM_16"]
    odd = [
        r
        for r in recordings
        if r not in loud and r not in quiet and r.peak > 0 and not median / _ODD_LEVEL < r.peak < median * _ODD_LEVEL
    ]
    notes = []
    if loud:
        times = f"{max(r.peak for r in loud):.3g} times full scale"
        notes.append(f"samples up to {times} (floats that hold integers?) in {_named(loud)}")
    if quiet:
        share = f"{max(r.peak for r in quiet):.1g} of full scale"
        notes.append(f"nothing louder than {share} (16-bit values in a wider file?) in {_named(quiet)}")
    if odd:
        notes.append(f"a level more than 60 dB from that of the machine's other clips in {_named(odd)}")
    return notes


def _named(recordings: Sequence[_Recording], most: int = 5) -> str:
    more = f" and {len(recordings) - most} more clips" if len(recordings) > most else ""
    return ", ".join(r.path for r in recordings[:most]) + more


def _formats(recordings: Sequence[_Recording]) -> list[str]:
    """Notes on rates, channels and lengths that differ, and on what goes with them."""
    notes = []
    for name, (value, unit) in FORMATS.items():
        kinds: dict[str, Counter[str]] = defaultdict(Counter)
        for r in recordings:
            kinds[f"{value(r.header)}{unit}"][r.kind] += 1
        if len(kinds) > 1:
            notes.append(f"{name} differ: {_described(kinds)}{_tells_the_label(kinds)}")
    return notes


def _described(kinds: dict[str, Counter[str]], most: int = 4) -> str:
    common = sorted(kinds, key=lambda value: -kinds[value].total())
    parts = []
    for value in common[:most]:
        total, whose = kinds[value].total(), kinds[value]
        parts.append(f"{value} in {total} clips" + (f" (all of them {next(iter(whose))})" if len(whose) == 1 else ""))
    if len(common) > most:
        parts.append(f"and {len(common) - most} others")
    return ", ".join(parts)


def _tells_the_label(kinds: dict[str, Counter[str]]) -> str:
    """Whether anomalies have values that no normal test clip has, and the other way round."""
    anomalies = {value for value, counts in kinds.items() if counts["test anomaly"]}
    normals = {value for value, counts in kinds.items() if counts["test normal"]}
    if anomalies and normals and not anomalies & normals and len(kinds) <= 4:
        return "; the recording, not the machine, tells which test clips are anomalies"
    return ""
