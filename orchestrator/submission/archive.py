"""Reads a package, a folder or a zip file, into memory; nothing is ever unpacked."""

from __future__ import annotations

import re
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from orchestrator.submission.findings import Findings
from scoring.errors import InputError

# A real table has some hundred rows, so a file of this size is a mistake or a trap.
MAX_BYTES = 32 * 2**20
READ = (".csv", ".yaml", ".yml")
_LITTER = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")


def read_package(path: Path, findings: Findings) -> dict[str, bytes]:
    """Files of a package by their path in it; the content of tables and meta files, of others nothing.

    A file that cannot be read, or would be unpacked elsewhere, is a finding and not among them.

    Raises
    ------
    InputError
        If `path` is neither a folder nor a zip file.
    """
    if path.is_dir():
        found = _folder(path, findings)
    elif not path.exists():
        raise InputError(f"{path}: no such package; give a folder or a zip file")
    elif zipfile.is_zipfile(path):
        found = _zip(path, findings)
    else:
        raise InputError(f"{path}: neither a folder nor a zip file; make one with `tutti submission make`")
    files = {}
    for name, content in found:
        if any(part in _LITTER or part.startswith("._") for part in PurePosixPath(name).parts):
            findings.warning(name, "left behind by the operating system; leave it out")
        else:
            files[name] = content
    return files


def _folder(root: Path, findings: Findings) -> Iterator[tuple[str, bytes]]:
    inside = root.resolve()
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            findings.error(name, f"a link that leaves the package, to {path.readlink()}; put a copy there")
        elif path.is_file() and _readable(name, path.stat().st_size, findings):
            try:
                yield name, path.read_bytes() if _is_read(name) else b""
            except OSError as error:
                findings.error(name, f"cannot be read ({error.strerror})")


def _zip(path: Path, findings: Findings) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        seen: set[str] = set()
        for entry in archive.infolist():
            # zipfile turns a backslash into a slash on Windows only; unpackers elsewhere differ.
            name = entry.orig_filename
            if fault := _entry_fault(entry, name, seen):
                findings.error(name, fault)
            elif not entry.is_dir() and _readable(name, entry.file_size, findings):
                try:
                    yield name, archive.read(entry) if _is_read(name) else b""
                except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, OSError) as error:
                    findings.error(name, f"cannot be unpacked ({error}); make the zip file again")
            seen.add(name)


def _entry_fault(entry: zipfile.ZipInfo, name: str, seen: set[str]) -> str | None:
    if name.startswith(("/", "\\")) or re.match("[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
        return "would be unpacked outside the package's folder; use paths inside it"
    if "\\" in name:
        return "a backslash in the path; zip folders with / between the names"
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "a symbolic link; put the file itself into the zip"
    if entry.flag_bits & 1:
        return "encrypted; make the zip file without a password"
    if name in seen:
        return "stands in the zip file twice; make it again"
    return None


def _is_read(name: str) -> bool:
    return name.lower().endswith(READ)


def _readable(name: str, size: int, findings: Findings) -> bool:
    if _is_read(name) and size > MAX_BYTES:
        findings.error(name, f"{size / 2**20:.0f} MiB; a table or meta file has less than {MAX_BYTES // 2**20} MiB")
        return False
    return True
