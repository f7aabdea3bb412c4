"""What a person should know of a data set before anything is computed from it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from branches.audio import Header, read_clip, read_header
from branches.data.layout import noise_paths
from scoring.errors import InputError, counted

TOO_LOUD = 2.0  # times full scale, which floats may exceed by a little
# What recordings of one machine should have in common: its value by the header, and the unit.
PROPERTIES: dict[str, tuple[Callable[[Header], float], str]] = {
    "sampling rates": (lambda header: header.rate, " Hz"),
    "channels": (lambda header: header.channels, ""),
    "lengths": (lambda header: round(header.frames / header.rate, 1), " s"),
}


@dataclass(frozen=True)
class Inspection:
    """Lines on clips that cannot be used (`problems`), and on clips that can but look wrong (`notes`).

    formats: of each machine, in words, for each of `PROPERTIES`
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    formats: dict[str, dict[str, str]] = field(default_factory=dict)


def inspect(root: Path, index: pa.Table, read: Callable[[int], object] = int) -> Inspection:
    """Read every clip of the index, and recordings of noise; `read` is called with 1 after each clip.

    Noted are recordings that stand there twice (among the training and the test clips that makes a score look better
    than it is), silent channels, samples far above full scale, and machines whose recordings differ in rate, channels
    or length: where that goes with the split or the label, a detector learns the recording instead of the machine.
    """
    inspection = Inspection()
    first: dict[bytes, str] = {}
    machines: dict[str, list[tuple[str, Header]]] = defaultdict(list)  # kind, e.g. "test anomaly", and header
    columns = (index[column].to_pylist() for column in ("path", "machine", "split", "condition"))
    for path, machine, split, condition in zip(*columns, strict=True):
        read(1)
        try:
            samples, header = read_clip(root / path), read_header(root / path)
        except InputError as error:
            inspection.problems.append(str(error))
            continue
        kind = split if split == "train" or condition is None else f"{split} {condition}"
        machines[machine].append((kind, header))
        silent = np.flatnonzero(np.ptp(samples, axis=0) == 0)
        if len(silent):
            inspection.notes.append(f"{path}: nothing is heard on channel {', '.join(map(str, silent))}")
            continue
        if (peak := float(np.abs(samples).max())) > TOO_LOUD:
            inspection.notes.append(f"{path}: samples up to {peak:.3g} times full scale (floats that hold integers?)")
        other = first.setdefault(hashlib.sha256(samples.tobytes()).digest(), path)
        if other != path:
            inspection.notes.append(f"{path}: the same recording as {other}")
    for path in noise_paths(root):
        try:
            read_clip(root / path)
        except InputError as error:
            inspection.problems.append(str(error))
    for machine, recordings in machines.items():
        inspection.formats[machine] = {}
        for name, (value, unit) in PROPERTIES.items():
            kinds: dict[float, Counter[str]] = defaultdict(Counter)
            for kind, header in recordings:
                kinds[value(header)][kind] += 1
            low, high = min(kinds), max(kinds)
            inspection.formats[machine][name] = f"{low}{unit}" if low == high else f"{low}–{high}{unit}"
            if len(kinds) > 1:
                note = f"{name} differ: {_described(kinds, unit)}{_tells_the_label(kinds)}"
                inspection.notes.append(f"{machine}: {note}")
    return inspection


def _described(kinds: Mapping[float, Counter[str]], unit: str, most: int = 4) -> str:
    common = sorted(kinds, key=lambda value: -kinds[value].total())
    parts = []
    for value in common[:most]:
        whose = kinds[value]
        all_of_one = f" (all of them {next(iter(whose))})" if len(whose) == 1 else ""
        parts.append(f"{value}{unit} in {counted(whose.total(), 'clip')}{all_of_one}")
    if len(common) > most:
        parts.append(f"and {len(common) - most} others")
    return ", ".join(parts)


def _tells_the_label(kinds: Mapping[float, Counter[str]]) -> str:
    """Whether anomalies have values that no normal test clip has, and the other way round."""
    anomalies = {value for value, counts in kinds.items() if counts["test anomaly"]}
    normals = {value for value, counts in kinds.items() if counts["test normal"]}
    if anomalies and normals and not anomalies & normals and len(kinds) <= 4:
        return "; the recording, not the machine, tells which test clips are anomalies"
    return ""
