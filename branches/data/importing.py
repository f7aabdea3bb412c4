"""Recordings of any name, rate, length and channel count → a data set in the challenge's layout.

<out>/<machine>/{train,test}/section_00_source_train_normal_0000_noAttribute.wav     16 kHz, 32-bit floats
<out>/recordings.csv     which recording each clip is, and which part of it
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from branches.audio import read_clip
from branches.data.layout import RECORDINGS
from branches.frames import SAMPLE_RATE
from scoring.atomic import atomic_folder
from scoring.clip_names import ClipName, attribute_pairs
from scoring.errors import InputError

ORIGINALS = "recordings.csv"
COLUMNS = ("path", "machine", "section", "split", "condition", "domain", "attributes")
# Folders whose names say something of the recordings in them.
_FOLDERS = {
    "train": {"split": "train"},
    "test": {"split": "test"},
    "normal": {"condition": "normal"},
    "anomaly": {"condition": "anomaly"},
    "abnormal": {"condition": "anomaly"},
    "source": {"domain": "source"},
    "target": {"domain": "target"},
}
_ALLOWED = {
    "split": ("train", "test"),
    "condition": ("normal", "anomaly", ""),
    "domain": ("source", "target", ""),
}


@dataclass(frozen=True)
class Original:
    """One recording, and what is known of it; text is empty where nothing is."""

    path: Path
    machine: str
    section: int
    split: str
    condition: str
    domain: str
    attributes: str

    def file_name(self, number: int) -> str:
        """The name of the clip in the layout; without a condition it says as little as those of evaluation sets."""
        split = self.split if self.condition else None
        attributes = attribute_pairs(self.attributes)
        return ClipName(self.section, self.domain, split, self.condition, attributes).file_name(number)


def originals(source: Path, machine: str | None = None) -> list[Original]:
    """The recordings that a folder or a CSV manifest names.

    source: a folder, in which folders called train, test, normal, anomaly, source or target say so of what is in
        them and the outermost other folder is the machine; or a CSV file with some of `COLUMNS`, `path` being
        relative to it
    machine: of recordings whose machine is not said

    Raises InputError if there are no recordings, or one's machine or values are missing or contradict each other.
    """
    rows = _manifest(source) if source.is_file() else _folder(source)
    recordings = [_original(where, row, machine) for where, row in rows]
    if not recordings:
        kinds = ", ".join(f"*{suffix}" for suffix in RECORDINGS)
        raise InputError(f"{source}: no recordings in it ({kinds})")
    return recordings


def _folder(source: Path) -> Iterator[tuple[str, dict[str, str]]]:
    if not source.is_dir():
        raise InputError(f"{source}: no such folder or manifest")
    for folder, inner, names in os.walk(source, followlinks=True):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        parts = Path(folder).relative_to(source).parts
        row = {"machine": next((part for part in parts if part.lower() not in _FOLDERS), "")}
        for part in parts:
            row |= _FOLDERS.get(part.lower(), {})
        for name in sorted(names):
            path = Path(folder, name)
            if path.suffix.lower() in RECORDINGS and not name.startswith("."):
                yield str(path), {**row, "path": str(path)}


def _manifest(source: Path) -> Iterator[tuple[str, dict[str, str]]]:
    try:
        with open(source, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or []
            if "path" not in header or (unknown := set(header) - set(COLUMNS)):
                fault = f"unknown column {', '.join(sorted(unknown))}" if "path" in header else "no column path"
                raise InputError(f"{source}: {fault}; the columns are {', '.join(COLUMNS)}, all but path as you like")
            for number, row in enumerate(reader, start=2):
                values = {key: (value or "").strip() for key, value in row.items() if key}
                if "\0" in "".join(values.values()):
                    raise csv.Error("a zero byte")
                yield f"{source}, line {number}", {**values, "path": str(source.parent / values["path"])}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{source}: cannot be read as CSV ({error})") from None


def _original(where: str, row: dict[str, str], machine: str | None) -> Original:
    machine = row.get("machine") or machine
    if not machine:
        raise InputError(f"{where}: of which machine? give --machine, a folder for each, or a column machine")
    if machine in (".", "..") or machine.startswith(".") or "/" in machine or "\\" in machine:
        raise InputError(f"{where}: machine {machine!r} cannot be a folder's name")
    condition = row.get("condition", "")
    split = row.get("split") or ("test" if condition == "anomaly" else "train")
    values = {"split": split, "condition": condition or ("normal" if split == "train" else "")}
    values["domain"] = row.get("domain") or ("source" if values["condition"] else "")
    for column, allowed in _ALLOWED.items():
        if values[column] not in allowed:
            options = " or ".join(filter(None, allowed))
            raise InputError(f"{where}: {column} is {values[column]!r}; it must be {options}, or empty")
    if (split, condition) == ("train", "anomaly"):
        raise InputError(f"{where}: an anomaly for training; training data are normal")
    section = row.get("section") or "0"
    if not section.isdecimal() or len(section) > 9:
        raise InputError(f"{where}: section is {section!r}; it must be a whole number")
    attributes = re.sub(r"[^\w.+-]", "-", row.get("attributes", ""))
    return Original(Path(row["path"]), machine, int(section), **values, attributes=attributes)


def import_recordings(
    recordings: Iterable[Original], out: Path, clip_seconds: float | None = None
) -> tuple[int, float]:
    """Write recordings as clips of the layout into `out`; the number of clips, and the seconds that became none.

    clip_seconds: cut recordings into clips of this length; None makes each a clip. What is left at the end is dropped

    Raises InputError if `out` exists or a recording cannot be used; nothing is written then.
    """
    if out.exists():
        raise InputError(f"{out}: exists already; give another folder, or remove it")
    numbers: Counter[tuple[str, str]] = Counter()
    rows: list[tuple[object, ...]] = []
    dropped = 0.0
    with atomic_folder(out) as folder:
        for original in recordings:
            samples = read_clip(original.path)
            pieces = _pieces(samples, clip_seconds)
            dropped += (len(samples) - sum(map(len, pieces))) / SAMPLE_RATE
            for i, piece in enumerate(pieces):
                # One count for each machine and split: names are unique, whatever is known of a clip.
                name = original.file_name(numbers[original.machine, original.split])
                numbers[original.machine, original.split] += 1
                path = Path(original.machine, original.split, name)
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(folder / path, piece, SAMPLE_RATE, subtype="FLOAT")
                start = i * (clip_seconds or 0.0)
                rows.append((path, os.path.abspath(original.path), start, start + len(piece) / SAMPLE_RATE))
        with open(folder / ORIGINALS, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("clip", "recording", "start", "end"), *rows])
    return len(rows), dropped


def _pieces(samples: NDArray[np.float32], seconds: float | None) -> list[NDArray[np.float32]]:
    """Pieces of equal length; a recording shorter than that is one piece."""
    length = round(seconds * SAMPLE_RATE) if seconds else len(samples)
    return [samples[i : i + length] for i in range(0, max(len(samples) - length, 0) + 1, length)]


def original_names(root: Path) -> dict[str, str]:
    """What each clip (`<machine>/<split>/<name>`) of an imported data set was called; nothing where none can tell."""
    try:
        with open(root / ORIGINALS, newline="", encoding="utf-8") as file:
            return {row["clip"]: f"{row['recording']}, from {float(row['start']):g} s" for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, TypeError, csv.Error):  # there is none, or it is damaged
        return {}
