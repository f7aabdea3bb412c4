"""The challenge's data sets of 2020 to 2026, fetched from Zenodo and unpacked into the layout that tutti reads.

What is unpacked is listed in `.archives/` in the data set's folder: a file for each archive, with its checksum and the
files that came with it. It is written last, so that an archive whose unpacking was cut is unpacked again.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from branches.data.layout import FOLDERS, SUPPLEMENTAL, is_passed_over
from branches.downloads import document, download
from scoring.atomic import atomic
from scoring.errors import InputError, counted, naming

log = logging.getLogger(__name__)

PARTS = ("dev", "additional", "eval")
RECORDS = {
    "dcase2020": (3678171, 3727685, 3841772),
    "dcase2021": (4562016, 4660992, 4884786),
    "dcase2022": (6355122, 6462969, 6586456),
    "dcase2023": (7882613, 7830345, 7860847),
    "dcase2024": (10902294, 11259435, 11363076),
    "dcase2025": (15097779, 15392814, 15519362),
    "dcase2026": (19336329, 20151556, 20437238),
}
UNPACKED = 1.3  # size of recordings over that of their archive, about
_LISTS = ".archives"
_NO_MACHINE = re.compile(r"dev|eval|add(itional)?|data|train(ing)?|test|dcase|task2|20\d\d|r\d+", re.IGNORECASE)
_REVISION = re.compile(r"_r(\d+)$")


@dataclass(frozen=True)
class Archive:
    """An archive of a Zenodo record.

    machine: whose recordings it holds; empty if its name does not say
    size: in bytes
    checksum: `md5:…`
    """

    name: str
    machine: str
    size: int
    checksum: str
    url: str

    @property
    def title(self) -> str:
        """What revisions have in common, of which some are called otherwise: machine and kind of clips."""
        words = Path(self.name).stem.split("_")
        return "_".join(sorted(w for w in words if w in ("dev", "train", "test") or not _NO_MACHINE.fullmatch(w)))

    @property
    def revision(self) -> int:
        """The number in `_r2`; 1 without."""
        match = _REVISION.search(Path(self.name).stem)
        return int(match[1]) if match else 1


def archives(data_set: str, parts: Collection[str] = PARTS, machines: Collection[str] = ()) -> list[Archive]:
    """The newest archives of some parts of a challenge's data set, of all machines or some.

    `$ZENODO_ENDPOINT` names another host than https://zenodo.org that answers as it does.

    Raises InputError if a record cannot be read, or there is no such machine.
    """
    newest: dict[str, Archive] = {}
    for part, record in zip(PARTS, RECORDS[data_set], strict=True):
        if part in parts:
            for archive in _listed(data_set, part, record):
                before = newest.setdefault(archive.title, archive)
                newest[archive.title] = max(before, archive, key=lambda a: a.revision)
    if not newest:
        raise InputError(f"{data_set}: no archives in {', '.join(parts)}")
    known = sorted({archive.machine for archive in newest.values()})
    if unknown := [machine for machine in machines if machine not in known]:
        raise InputError(
            f"{data_set} has no machine {', '.join(unknown)} in {', '.join(parts)}; it has {', '.join(known)}"
        )
    return [archive for archive in newest.values() if not machines or archive.machine in machines]


def _listed(data_set: str, part: str, record: int) -> list[Archive]:
    host = (os.environ.get("ZENODO_ENDPOINT") or "https://zenodo.org").rstrip("/")
    address = f"{host}/api/records/{record}"
    try:
        files = document(address)["files"]
        found = [_archive(file, address) for file in (files["entries"].values() if "entries" in files else files)]
    except InputError as error:
        if "answers HTTP 404" in str(error):
            log.warning("%s, %s: not published: %s", data_set, part, error)
            return []
        raise InputError(f"{data_set}, {part}: {error}; the same command goes on where this ended") from None
    except (LookupError, TypeError, AttributeError):
        raise InputError(f"{data_set}, {part}: {address} is no record of Zenodo") from None
    if others := [archive.name for archive in found if archive.name.endswith((".tar", ".gz", ".tgz", ".7z", ".rar"))]:
        log.info("%s, %s: left out, since they are no zip archives: %s", data_set, part, ", ".join(others))
    return [archive for archive in found if archive.name.endswith(".zip")]


def _archive(file: dict[str, Any], address: str) -> Archive:
    """An entry of a record's `files`, in the form of the old or of the new interface."""
    name, checksum, links = PurePosixPath(file["key"]).name, file["checksum"], file.get("links", {})
    words = [word for word in Path(name).stem.split("_") if not _NO_MACHINE.fullmatch(word)]
    url = links.get("content") or links.get("self") or f"{address}/files/{file['key']}/content"
    return Archive(name, "_".join(words), int(file["size"]), checksum if ":" in checksum else f"md5:{checksum}", url)


def is_unpacked(archive: Archive, folder: Path) -> bool:
    """Whether all that an archive holds is in the data set's folder."""
    checksum, files = _list_of(folder / _LISTS / f"{archive.name}.txt")
    return checksum == archive.checksum and all((folder / file).exists() for file in files)


def check_room(missing: Sequence[Archive], folder: Path, keep: bool) -> None:
    """Raise `InputError` if there is no room for archives and what they hold."""
    sizes = [archive.size for archive in missing]
    needed = UNPACKED * sum(sizes) + (sum(sizes) if keep else max(sizes, default=0))
    free = shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.exists())).free
    if needed > free:
        raise InputError(
            f"{folder}: no room: {counted(len(missing), 'archive')} and what they hold take {needed / 1e9:.3g} GB, of "
            f"which {free / 1e9:.3g} are free; make room, or fetch less with --part and --machine"
        )


def fetch(data_set: str, missing: Iterable[Archive], folder: Path, keep: bool = False) -> None:
    """Fetch archives one after another and unpack each into the data set's folder.

    An archive that lies in the folder already is checked and unpacked.

    keep: whether archives stay there

    Raises InputError if the folder holds another year, whose machines may have the same names; at the end, naming the
    archives that could not be fetched and why; the others are unpacked.
    """
    lists = folder / _LISTS
    if others := {path.name for path in lists.glob("dcase*") if path.name in RECORDS} - {data_set}:
        raise InputError(f"{folder}: holds {', '.join(others)}, whose machines may have the same names; give another")
    lists.mkdir(parents=True, exist_ok=True)
    (lists / data_set).touch()
    failures = []
    for archive in missing:
        file = folder / archive.name
        try:
            download(file, [archive.url], archive.checksum, archive.size)
            _unpack(archive, file, folder)
        except InputError as error:
            failures.append(f"{archive.name}: {error}")
            continue
        if not keep:
            file.unlink()
    if failures:
        number = counted(len(failures), "archive")
        raise InputError(f"{number} missing; the same command goes on: {'; '.join(failures)}")


def _unpack(archive: Archive, file: Path, folder: Path) -> None:
    """Put what an archive holds in its place, and remove what an older one of the same title held beside it."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking-") as name:
        files = []
        try:
            with naming(folder), zipfile.ZipFile(file) as content:
                for member in content.infolist():
                    target = None if member.is_dir() else _target(PurePosixPath(member.filename), archive.machine)
                    if target is not None:
                        (Path(name) / target).parent.mkdir(parents=True, exist_ok=True)
                        with content.open(member) as source, (Path(name) / target).open("wb") as copy:
                            shutil.copyfileobj(source, copy, 2**20)
                        files.append(target)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise InputError(f"cannot be unpacked ({error}); remove {file}, and it is fetched anew") from None
        if not files:
            raise InputError(
                f"holds no <machine>/{{{','.join(FOLDERS)}}}/*; what it holds is not a part of this challenge"
            )
        for target in files:
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            (Path(name) / target).replace(folder / target)
    lists = folder / _LISTS
    for older in lists.glob("*.zip.txt"):
        if Archive(older.stem, "", 0, "", "").title == archive.title:
            for left in {*_list_of(older)[1]} - {str(target) for target in files}:
                (folder / left).unlink(missing_ok=True)
            older.unlink()
    with atomic(lists / f"{archive.name}.txt") as temporary:
        temporary.write_text("\n".join([archive.checksum, *map(str, files)]), encoding="utf-8")


def _list_of(path: Path) -> tuple[str, list[str]]:
    """Checksum and files of an archive that was unpacked; empty without."""
    checksum, *files = path.read_text(encoding="utf-8").splitlines() if path.exists() else [""]
    return checksum, files


def _target(member: PurePosixPath, machine: str) -> Path | None:
    """Where a file of an archive goes, `<machine>/<folder>/<name>`, whatever folders it has around; None: nowhere."""
    parts = member.parts
    if any(is_passed_over(part) or part in ("..", "__MACOSX") for part in parts):
        return None
    inner = next((i for i, part in enumerate(parts) if part in (*FOLDERS, SUPPLEMENTAL)), None)
    if inner is None:
        is_attributes = member.suffix == ".csv" and member.name.startswith("attributes")
        inner = len(parts) - 1 if is_attributes else None
    if inner is None:
        return None
    around = parts[inner - 1] if inner else ""
    is_machine = not all(_NO_MACHINE.fullmatch(word) for word in re.split(r"[_ /]", around))
    owner = around if around and is_machine else machine
    return Path(owner, *parts[inner:]) if owner else None
