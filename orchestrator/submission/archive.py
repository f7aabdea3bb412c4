"""Reads a package, a folder or a zip file, into memory; nothing is ever unpacked."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from orchestrator.submission.findings import Findings
from scoring.errors import InputError

READ = (".csv", ".yaml", ".yml")
_LITTER = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")


def read_package(path: Path, findings: Findings) -> dict[str, bytes]:
    """Files of a package by their path in it; the content of tables and meta files, of others nothing.

    A file that cannot be read is a finding and not among them.

    Raises
    ------
    InputError
        If `path` is neither a folder nor a zip file.
    """
    if path.is_dir():
        contents = _folder(path, findings)
    elif not path.exists():
        raise InputError(f"{path}: no such package; give a folder or a zip file")
    elif zipfile.is_zipfile(path):
        contents = _zip(path, findings)
    else:
        raise InputError(f"{path}: neither a folder nor a zip file; make one with `tutti submission make`")
    files = {}
    for name, content in contents:
        if any(part in _LITTER or part.startswith("._") for part in PurePosixPath(name).parts):
            findings.warning(name, "left behind by the operating system; leave it out")
        else:
            files[name] = content
    return files


def _folder(root: Path, findings: Findings) -> Iterator[tuple[str, bytes]]:
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        name = path.relative_to(root).as_posix()
        try:
            yield name, path.read_bytes() if _is_read(name) else b""
        except OSError as error:
            findings.error(name, f"cannot be read ({error.strerror})")


def _zip(path: Path, findings: Findings) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            # Some programs on Windows write backslashes, which zipfile mends there only; other unpackers differ.
            if "\\" in entry.orig_filename:
                findings.error(entry.orig_filename, "a backslash in the path; zip folders with / between the names")
            elif not entry.is_dir():
                try:
                    yield entry.filename, archive.read(entry) if _is_read(entry.filename) else b""
                except (
                    zipfile.BadZipFile,
                    RuntimeError,
                    EOFError,
                    ValueError,
                    OSError,
                ) as error:
                    findings.error(entry.filename, f"cannot be unpacked ({error}); make the zip file again")


def _is_read(name: str) -> bool:
    return name.lower().endswith(READ)
