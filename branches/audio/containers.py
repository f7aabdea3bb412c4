"""Recordings' files, opened only if they are complete: libsndfile reads what is left of a cut WAV without a word.

The lengths that a WAV states are compared with the file's. Those that a program could not know, since it wrote to a
pipe, are no lengths. A cut FLAC shows when it is decoded; other containers are taken as they are.
"""

from __future__ import annotations

import io
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import soundfile

from scoring.errors import InputError

# Of 2 or 4 GiB, give or take the headers: what ffmpeg, SoX and arecord write to a pipe where a length belongs.
_UNKNOWN, _HEADERS = 1 << 31, 0x1100
_BEHIND = 1 << 17  # bytes of tags or padding behind the stated end that nobody asks about


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A recording's file, open; `InputError` if it cannot be read, or is a pipe or a device, which may never end."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{path}: a folder, pipe or device, not a recording's file; remove it")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); replace or remove it") from None


def open_recording(file: BinaryIO, name: str) -> soundfile.SoundFile:
    """An open file, which begins where a recording does, as a sound file.

    Raises InputError, naming the recording, if it cannot be read, or is a WAV that is shorter than its header says or
    far longer.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"RIFF" and head[8:] == b"WAVE" and (chunk := _data_chunk(file)):
        begin, length = chunk
        if length == 0:
            file = _with_data_length(file, begin, size)
        elif not _is_unknown(length):
            (riff,) = struct.unpack("<I", head[4:8])
            # The further of both ends, as a cut file's first length may be mended and chunks may follow the sound.
            _check_complete(name, size, max(begin + length, 0 if _is_unknown(riff) else 8 + riff))
    file.seek(0)
    try:
        return soundfile.SoundFile(file)
    except soundfile.LibsndfileError as error:
        remedy = "convert it (ffmpeg -i FILE FILE.wav), replace or remove it"
        raise InputError(f"{name}: not a readable recording ({error.error_string}); {remedy}") from None


def _data_chunk(file: BinaryIO) -> tuple[int, int] | None:
    """Where the sound of a WAV begins, and of how many bytes its header says it is."""
    while len(header := file.read(8)) == 8:
        kind, length = struct.unpack("<4sI", header)
        if kind == b"data":
            return file.tell(), length
        file.seek(length + length % 2, os.SEEK_CUR)
    return None


def _is_unknown(length: int) -> bool:
    return min(length % _UNKNOWN, -length % _UNKNOWN) <= _HEADERS


def _check_complete(name: str, size: int, end: int) -> None:
    if end > size + 1:  # some writers leave out the last padding byte
        raise InputError(f"{name}: truncated: {size} of {end} bytes; copy it again")
    if size > end + _BEHIND:
        raise InputError(
            f"{name}: its header gives {end} of {size} bytes, as after a recorder was stopped or in a WAV over "
            "4 GiB; rewrite the header, or save the recording as RF64, W64 or FLAC"
        )


def _with_data_length(file: BinaryIO, begin: int, size: int) -> BinaryIO:
    """The file with the length of its sound, which was never written: libsndfile takes 0 for no sound."""
    file.seek(0)
    content = bytearray(file.read())
    content[begin - 4 : begin] = struct.pack("<I", min(size - begin, 0xFFFF_FFFF))
    return io.BytesIO(content)
