"""Recordings of any name, rate, length and channel count → a data set in the challenge's layout.

<out>/<machine>/{train,test}/section_00_source_train_normal_0000_noAttribute.wav     16 kHz, 32-bit floats
<out>/recordings.csv     which recording each clip is, and which part of it
"""

from __future__ import annotations

import csv
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from branches.audio import read_clip, write_wav
from branches.data.folder_names import is_called_anomaly, labels_of
from branches.data.layout import CONVERT, READABLE, RECORDINGS, files, find, kinds
from branches.frames import SAMPLE_RATE
from scoring.atomic import atomic_folder
from scoring.clip_names import ClipName, attribute_pairs, nfc
from scoring.errors import InputError, counted
from scoring.spreadsheets import read_rows

log = logging.getLogger(__name__)

# Machine, split, condition, and the folder of the recordings.
Origin = tuple[str, str, str, str]

ORIGINALS = "recordings.csv"
_REMEDY = "call folders normal, anomaly, train or test, take them out, or list the recordings in a CSV manifest"
COLUMNS = ("path", "machine", "section", "split", "condition", "domain", "attributes")
_ALLOWED = {
    "split": ("train", "test"),
    "condition": ("normal", "anomaly", ""),
    "domain": ("source", "target", ""),
}


@dataclass(frozen=True)
class Original:
    """One recording, the folder it was found in, and what is known of it; text is empty where nothing is."""

    path: Path
    folder: str
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
    """The recordings that a folder or a CSV manifest names; what is left out, or taken as it may not be, is logged.

    source: a folder, in which names of folders say what is in them (`_described`); or a CSV file with some of
        `COLUMNS`, `path` being relative to it
    machine: of recordings whose machine is not said

    Raises InputError if there are no recordings, one's machine or values are missing or contradict each other, or a
    folder beside others that say what is in them says nothing.
    """
    rows = _manifest(source) if source.is_file() else _folder(source)
    recordings = [_original(where, row, machine) for where, row in rows]
    if not recordings:
        raise InputError(f"{source}: no recordings in it (*.wav, *.flac and whatever else libsndfile reads)")
    named = {recording.machine for recording in recordings}
    if machine and nfc(machine) not in named:
        log.warning("--machine %s is not used: folders or rows name machines: %s", machine, ", ".join(sorted(named)))
    return recordings


def _folder(source: Path) -> list[tuple[str, dict[str, str]]]:
    if not source.is_dir():
        raise InputError(f"{source}: no such folder or manifest")
    found = files(source)
    recordings = [path for path in found if path.suffix.lower() in READABLE]
    if others := [path for path in found if path.suffix.lower() not in READABLE and path.name != ORIGINALS]:
        left_out = f"left out, as libsndfile reads no such files: {kinds(others)}"
        remedy = f"; {CONVERT}" if any(path.suffix.lower() in RECORDINGS for path in others) else ""
        if not recordings:
            raise InputError(f"{source}: no recordings in it; {left_out}{remedy}")
        log.warning("%s: %s%s", source, left_out, remedy)
    return [(str(path), row) for path, row in zip(recordings, _described(source, recordings), strict=True)]


def _described(source: Path, recordings: Sequence[Path]) -> Iterator[dict[str, str]]:
    """What is known of each recording: what its folders say, and if these leave its condition open, its own name."""
    inside: dict[Path, set[str]] = defaultdict(set)  # of a folder the names of those within, and "" for a recording
    for path in recordings:
        name = ""
        for folder in path.parents[: len(path.relative_to(source).parts)]:
            inside[folder].add(name)
            name = folder.name
    labels = {folder: _folder_labels(source, folder, inside) for folder in {path.parent for path in recordings}}
    doubted: set[str] = set()
    for path in recordings:
        row, silent = labels[path.parent]
        condition = row.get("condition") or labels_of(path.stem).get("condition", "")
        for folder in silent if not condition else ():
            if speaking := sorted(name for name in inside[folder.parent] if labels_of(name)):
                beside = ", ".join(speaking[:5])
                raise InputError(f"{folder}: beside {beside}, whose names say what is in them, its does not; {_REMEDY}")
            doubted |= {str(folder)} if len(inside[folder.parent]) > 1 else set()
        yield {**row, "condition": condition, "path": str(path)}
    if doubted:
        log.warning(
            "normal or anomalous? %s with a name that does not say; the recordings are taken as normal, or below a "
            "folder test as unlabelled: %s",
            counted(len(doubted), "folder"), ", ".join(sorted(doubted)[:5]) + ", …" * (len(doubted) > 5),
        )  # fmt: skip


def _folder_labels(source: Path, folder: Path, inside: Mapping[Path, set[str]]) -> tuple[dict[str, str], list[Path]]:
    """What the names of the folders down to this one say, and those folders of which neither they nor places tell.

    The outermost that says nothing is the machine, unless others beside it say something. Beside `test/good`, as in
    MVTec AD, are kinds of anomalies.
    """
    row, silent, above = {"folder": folder.relative_to(source).as_posix()}, [], source
    for name in folder.relative_to(source).parts:
        beside, labels = [labels_of(other) for other in inside[above]], labels_of(name)
        if not labels and row.get("split") == "test" and "normal" in {other.get("condition") for other in beside}:
            labels = {"condition": "anomaly"}
        above /= name
        for key, value in labels.items():
            if row.setdefault(key, value) != value:
                raise InputError(f"{above}: names of folders say both {row[key]} and {value}; {_REMEDY}")
        if not labels and ("machine" in row or any(beside)):
            silent.append(above)
        elif not labels:
            row["machine"] = name
    return row, silent


def _manifest(source: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a manifest, with where they are; the path as the file system spells it."""
    called: list[str] = []
    for line, row in read_rows(source, ("path",), COLUMNS):
        where, path = f"{source}, line {line}", row["path"]
        found = find(source.parent, path)
        if found is None and "\\" in path:
            raise InputError(f"{where}: there is no {path!r}; write the path with / in place of \\")
        if is_called_anomaly(Path(path)) and not row.get("condition") and row.get("split") != "test":
            called.append(path)
        yield where, {**row, "path": str(found or source.parent / path), "folder": os.path.dirname(path) or "."}
    if called:
        log.warning(
            "taken as normal though called an anomaly: %s, %s; the column condition may say otherwise",
            counted(len(called), "recording"), called[0],
        )  # fmt: skip


def _original(where: str, row: dict[str, str], machine: str | None) -> Original:
    machine = nfc(row.get("machine") or machine or "")
    if not machine:
        raise InputError(f"{where}: of which machine? give --machine, a folder for each, or a column machine")
    if machine in (".", "..") or machine.startswith(".") or "/" in machine or "\\" in machine:
        raise InputError(f"{where}: machine {machine!r} cannot be a folder's name")
    row = {column: labels_of(text).get(column, text) for column, text in row.items()}  # OK is normal, Train is train
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
    return Original(Path(row["path"]), row["folder"], machine, int(section), **values, attributes=attributes)


def import_recordings(
    recordings: Iterable[Original], out: Path, clip_seconds: float | None = None
) -> tuple[Counter[Origin], float]:
    """Write recordings as clips of the layout into `out`.

    clip_seconds: cut recordings into clips of this length; None makes each a clip. What is left at the end is dropped

    Returns
    -------
    clips: how many were made of each machine, split and condition, by the folder of the recordings
    dropped: seconds that became no clip

    Raises InputError if `out` exists or a recording cannot be used; nothing is written then.
    """
    if out.exists():
        raise InputError(f"{out}: exists already; give another folder, or remove it")
    numbers: Counter[tuple[str, str]] = Counter()
    made: Counter[Origin] = Counter()
    rows: list[tuple[object, ...]] = []
    dropped = 0.0
    with atomic_folder(out) as folder:
        for original in recordings:
            samples = read_clip(original.path)
            if not samples.any():
                log.warning(
                    "%s: nothing is heard in it; among normal clips it hides anomalies, take it out", original.path
                )
            pieces = _pieces(samples, clip_seconds)
            condition = original.condition or "unlabelled"
            made[original.machine, original.split, condition, original.folder] += len(pieces)
            dropped += (len(samples) - sum(map(len, pieces))) / SAMPLE_RATE
            for i, piece in enumerate(pieces):
                # One count for each machine and split: names are unique, whatever is known of a clip.
                name = original.file_name(numbers[original.machine, original.split])
                numbers[original.machine, original.split] += 1
                path = Path(original.machine, original.split, name)
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                write_wav(folder / path, piece, "FLOAT")
                start = i * (clip_seconds or 0.0)
                rows.append((path, os.path.abspath(original.path), start, start + len(piece) / SAMPLE_RATE))
        with open(folder / ORIGINALS, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("clip", "recording", "start", "end"), *rows])
    return made, dropped


def _pieces(samples: NDArray[np.float32], seconds: float | None) -> list[NDArray[np.float32]]:
    """Pieces of equal length; a recording shorter than that is one piece."""
    length = round(seconds * SAMPLE_RATE) if seconds else len(samples)
    return [samples[i : i + length] for i in range(0, max(len(samples) - length, 0) + 1, length)]


def original_names(root: Path) -> dict[str, str]:
    """What each clip (`<machine>/<split>/<name>`) of an imported data set was called; nothing where none can tell."""
    try:
        with open(root / ORIGINALS, newline="", encoding="utf-8") as file:
            rows = [(row["clip"], row["recording"], float(row["start"])) for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):  # there is none, or it is damaged
        return {}
    return {clip: f"{recording}, from {start:g} s" if start else recording for clip, recording, start in rows}
