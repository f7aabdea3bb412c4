"""The folders of a data set, `<root>/<machine>/{train,test}/*.wav`, and what lies in it beside them."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from scoring.errors import InputError

log = logging.getLogger(__name__)

# Folder → split, domain; the last two are of 2021.
FOLDERS = {
    "train": ("train", None),
    "test": ("test", None),
    "source_test": ("test", "source"),
    "target_test": ("test", "target"),
}
_SUPPLEMENTAL = "supplemental"
RECORDINGS = (".wav", ".flac", ".mp3", ".ogg", ".aif", ".aiff", ".w64", ".au")


def clip_paths(root: Path) -> list[str]:
    """The recordings of a data set, sorted, relative to its root; machines and files that are not read are logged.

    Raises InputError if there are none, or a name is not UTF-8: score tables hold names as text.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the folder that holds one folder per machine")
    paths: list[str] = []
    lines: list[str] = []
    for machine in _folders(root):
        clips: list[str] = []
        unread: Counter[str] = Counter()  # recordings by the folder that they lie in
        for path in _files(machine):
            folder = path.relative_to(machine).parent.as_posix()
            if path.suffix == ".wav" and folder in FOLDERS:
                clips.append(path.relative_to(root).as_posix())
            elif path.suffix.lower() in RECORDINGS and folder.partition("/")[0] != _SUPPLEMENTAL:
                unread[folder if path.suffix == ".wav" else f"{folder} (*{path.suffix})"] += 1
        lines += _lines(machine, bool(clips), unread)
        paths += clips
    for clip in paths:
        check_utf8(clip)
    if not paths:
        raise InputError(f"{root}: not a data set: no <machine>/train/*.wav in it{_remedy(root, lines)}")
    for line in lines:
        log.warning("%s", line)
    return sorted(paths)


def check_utf8(path: str) -> None:
    """Raise `InputError`, naming the path as far as it can be printed, if it is not UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        printable = os.fsencode(path).decode(errors="backslashreplace")
        raise InputError(
            f"{printable}: the name is not UTF-8; rename it (e.g. with convmv -f latin1 -t utf8)"
        ) from None


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(machine: Path) -> Iterator[Path]:
    for folder, inner, names in os.walk(machine, followlinks=True):
        inner[:] = [name for name in inner if not name.startswith(".")]
        # Names that begin with `._` are what macOS leaves beside a file on other file systems.
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _lines(machine: Path, has_clips: bool, unread: Counter[str]) -> list[str]:
    """What to tell of a machine's folder: that it is missing from the data set, and recordings that are not read."""
    if has_clips and not unread:
        return []
    where = ", ".join(f"{count} in {folder}" for folder, count in sorted(unread.items()))
    if has_clips:
        return [f"{machine}: recordings that are not read: {where}; only *.wav in {', '.join(FOLDERS)} are"]
    if unread:
        return [f"{machine}: missing from the data set: no *.wav in its train/ or test/, but {where}; move them there"]
    if any((machine / folder).is_dir() for folder in FOLDERS):
        return [f"{machine}: missing from the data set: no recording in it"]
    return []


def _remedy(root: Path, lines: list[str]) -> str:
    if any((root / folder).is_dir() for folder in FOLDERS):
        return "; this is a machine's own folder, give its parent"
    below = {path.parent.parent for depth in ("*/*", "*/*/*", "*/*/*/*") for path in root.glob(f"{depth}/train")}
    if sets := sorted(path for path in below if any(path.glob("*/train/*.wav"))):
        return f"; a data set lies below it: {', '.join(map(str, sets[:3]))}"
    return "".join(f"; {line}" for line in lines[:1])
