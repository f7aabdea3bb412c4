"""The folders of a data set, `<root>/<machine>/{train,test}/*.wav`, and what lies in it beside them.

All folders of recordings are walked here, so that all say what cannot be read and none is read twice.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from pathlib import Path

import soundfile

from scoring.clip_names import unicode_forms
from scoring.errors import InputError

log = logging.getLogger(__name__)

# Folder → split, domain; the last two are of 2021.
FOLDERS = {
    "train": ("train", None),
    "test": ("test", None),
    "source_test": ("test", "source"),
    "target_test": ("test", "target"),
}
SUPPLEMENTAL = "supplemental"
# Without a header (raw), or for data of any kind (mat) and instruments (xi).
_NO_RECORDINGS = {"raw", "mat4", "mat5", "mpc2k", "xi"}
# Formats have the names that soundfile gives them, and others.
READABLE = frozenset(
    f".{name}"
    for name in (
        *({name.lower() for name in soundfile.available_formats()} - _NO_RECORDINGS),
        *("wave", "bwf", "aif", "aifc", "oga", "opus", "snd", "sf", "sph", "8svx", "iff"),
    )
)
_OTHERS = ".m4a .m4b .aac .adts .ac3 .wma .mp4 .m4v .3gp .3g2 .amr .mov .mkv .mka .webm .avi .ape .wv .tta .dsf .mpc"
RECORDINGS = READABLE | {*_OTHERS.split()}
CONVERT = "ffmpeg -i FILE FILE.wav converts a recording"
# What systems and file servers keep in a folder, some for themselves alone.
_SYSTEMS_OWN = {"lost+found", "System Volume Information", "$RECYCLE.BIN", "@eaDir"}


def files(root: Path, tell: Callable[[str], object] = log.warning) -> list[Path]:
    """The files in a folder and in those below, sorted; hidden ones are left out.

    Links to folders are followed. A folder is read once, however many lead to it, and none that `root` lies in;
    `tell` is called with a line on each link that is not followed.

    Raises InputError naming a folder that cannot be read.
    """
    found: list[Path] = []
    above = (*root.absolute().parents, *Path(os.path.realpath(root)).parents)
    read = {os.path.realpath(folder) for folder in above}
    folders, links = deque([root]), deque[Path]()
    while folders or links:
        folder = folders.popleft() if folders else links.popleft()
        if (real := os.path.realpath(folder)) in read:
            tell(f"{folder}: a link to a folder that is read already, or that holds {root}: not followed")
            continue
        read.add(real)
        try:
            entries = [*os.scandir(folder)]
        except OSError as error:
            raise InputError(f"{folder}: cannot be read ({error.strerror}); make it readable, or take it out") from None
        for entry in entries:
            if is_passed_over(entry.name):
                continue
            is_link = entry.is_symlink()  # one that leads nowhere, or in a circle, is a file that cannot be read
            if os.path.isdir(entry.path) if is_link else entry.is_dir():
                (links if is_link else folders).append(Path(entry.path))
            else:
                found.append(Path(entry.path))
    return sorted(found)


def is_passed_over(name: str) -> bool:
    """Whether a file or folder is hidden, as `._x` that macOS leaves beside x elsewhere, or the system's own."""
    return name.startswith(".") or name in _SYSTEMS_OWN


def kinds(paths: Iterable[Path]) -> str:
    """How many files there are of each suffix, for a message: `2 *.m4a, 1 *.txt`."""
    counts = Counter(f"*{path.suffix}" if path.suffix else path.name for path in paths)
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common(10))


def find(root: Path, relative: str) -> Path | None:
    """The file of this name below `root`, in whichever Unicode form it has there; None if there is none."""
    return next((path for form in unicode_forms(relative) if os.path.lexists(path := root / form)), None)


def clip_paths(root: Path, tell: Callable[[str], object] = log.warning) -> list[str]:
    """The recordings of a data set, sorted, relative to its root; `tell` hears of machines and files not read.

    Raises InputError if there are none, a folder cannot be read, or a name is not UTF-8: score tables hold names as
    text.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the folder that holds one folder per machine")
    paths: list[str] = []
    with_clips = {"."}  # the root itself is no machine that could be missing
    unread: dict[str, Counter[str]] = defaultdict(Counter)  # of each machine, by the folder that they lie in
    for path in files(root, tell):
        relative = path.relative_to(root)
        machine, _, folder = relative.parent.as_posix().partition("/")
        if path.suffix == ".wav" and folder in FOLDERS:
            paths.append(relative.as_posix())
            with_clips.add(machine)
        elif path.suffix.lower() in RECORDINGS and (folder, path.suffix) != (SUPPLEMENTAL, ".wav"):
            unread[machine][(folder or ".") + (f" (*{path.suffix})" if path.suffix != ".wav" else "")] += 1
    for clip in paths:
        check_utf8(clip)
    machines = sorted(path.name for path in root.iterdir() if path.is_dir() and not is_passed_over(path.name))
    lines = [line for m in (".", *machines) for line in _lines(root / m, m in with_clips, unread[m])]
    if not paths:
        raise InputError(f"{root}: not a data set: no <machine>/train/*.wav in it{_remedy(root, lines)}")
    for line in lines:
        tell(line)
    return sorted(paths)


def noise_paths(root: Path) -> list[str]:
    """Recordings of noise alone, `<machine>/supplemental/*noise*.wav`, sorted, relative to the root; maybe none."""
    folders = sorted(folder for folder in root.glob(f"*/{SUPPLEMENTAL}") if not folder.parent.name.startswith("."))
    found = (path for folder in folders for path in files(folder) if path.parent == folder)
    paths = [path.relative_to(root).as_posix() for path in found if path.suffix == ".wav" and "noise" in path.name]
    for path in paths:
        check_utf8(path)
    return paths


def check_utf8(path: str) -> None:
    """Raise `InputError`, naming the path as far as it can be printed, if it is not UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        printable = os.fsencode(path).decode(errors="backslashreplace")
        raise InputError(
            f"{printable}: the name is not UTF-8; rename it (e.g. with convmv -f latin1 -t utf8)"
        ) from None


def _lines(machine: Path, has_clips: bool, unread: Counter[str]) -> list[str]:
    """What to tell of a machine's folder: that it is missing from the data set, and recordings that are not read."""
    if has_clips and not unread:
        return []
    where = ", ".join(f"{count} in {folder}" for folder, count in sorted(unread.items()))
    if has_clips:
        read = ", ".join((*FOLDERS, SUPPLEMENTAL))
        return [f"{machine}: recordings that are not read: {where}; only *.wav in {read} are"]
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
