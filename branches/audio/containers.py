"""Recordings' files, opened only if they are complete: libsndfile reads what is left of a cut file without a word.

The length that a container states is compared with the file's. Lengths that a program could not know, since it wrote
to a pipe, are no lengths.
"""

from __future__ import annotations

import io
import os
import re
import struct
from typing import BinaryIO

import soundfile

from scoring.errors import InputError

# What writers to a pipe put where a length belongs: ffmpeg, SoX and arecord, each give or take the headers.
_UNKNOWN = (0x7FFF_F000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)
_HEADERS = 0x100
_TRAILING = 4096  # bytes behind the end that nobody asks about
_ROOM = 1 << 20  # more than that is neither set aside nor a tag
_TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LIST", b"id3 ", b"bext", b"iXML", b"_PMX", b"afsp")
_HEAD = 4096


def open_recording(file: BinaryIO, name: str) -> soundfile.SoundFile:
    """An open file, which begins where a recording does, as a sound file.

    Raises
    ------
    InputError
        Naming the recording, if it cannot be read, or is shorter than its header says or far longer.
    """
    try:
        _check_complete(file, name)
    except struct.error:
        raise InputError(f"{name}: truncated: it ends within its header; copy it again") from None
    try:
        return soundfile.SoundFile(_with_data_length(file))
    except soundfile.LibsndfileError as error:
        raise InputError(f"{name}: not a readable recording ({error.error_string}); replace or remove it") from None


def _check_complete(file: BinaryIO, name: str) -> None:
    size = file.seek(0, os.SEEK_END)
    end = _stated_end(file, size)
    if end is None:
        return
    if end > size + 1:  # some writers leave out the last padding byte
        raise InputError(f"{name}: truncated: {size} of {end} bytes; copy it again")
    if size - end > _ROOM or (size - end > _TRAILING and _is_sound(file, end)):
        raise InputError(
            f"{name}: its header gives {end} of {size} bytes, as after a recorder was stopped or in a WAV over "
            "4 GiB; rewrite the header, or save the recording as RF64, W64 or FLAC"
        )


def _is_sound(file: BinaryIO, position: int) -> bool:
    """Whether what lies behind the end is neither a tag nor room that was set aside."""
    file.seek(position)
    block = file.read(_TRAILING)
    return bool(block.strip(b"\0")) and not block.lstrip(b"\0").startswith(_TAGS)


def _with_data_length(file: BinaryIO) -> BinaryIO:
    """A RIFF file whose data chunk was never given its length has it now: libsndfile takes 0 for no sound."""
    file.seek(0)
    head = file.read(_HEAD)
    data = head.find(b"data\0\0\0\0")
    file.seek(0)
    if head[:4] != b"RIFF" or data < 0:
        return file
    content = bytearray(file.read())
    content[data + 4 : data + 8] = struct.pack("<I", min(len(content) - data - 8, 0xFFFF_FFFF))
    return io.BytesIO(content)


def _stated_end(file: BinaryIO, size: int) -> int | None:
    """Where the file ends according to its header; None where it does not say."""
    file.seek(0)
    head = file.read(_HEAD)
    if head[:4] in (b"RIFF", b"RIFX") and head[8:12] == b"WAVE":
        return _riff_end(file, "<" if head[:4] == b"RIFF" else ">", size)
    if head[:4] == b"RF64" and head[12:16] == b"ds64":
        return 8 + int(struct.unpack("<Q", head[20:28])[0])
    if head[:4] == b"FORM" and head[8:11] == b"AIF":
        return 8 + int(struct.unpack(">I", head[4:8])[0])
    if head[:4] == b"riff":  # Sony Wave64: a GUID, then the whole size
        return int(struct.unpack("<Q", head[16:24])[0])
    if head[:4] == b".snd":
        offset, length = struct.unpack(">II", head[4:12])
        return None if _is_unknown(length) else int(offset + length)
    if head[:7] == b"NIST_1A":
        return _nist_end(head)
    if head[:4] == b"OggS":
        return size if _last_page_ends(file, size) else size + 2
    return None


def _riff_end(file: BinaryIO, order: str, size: int) -> int | None:
    """Of the RIFF chunk and of the data chunk in it, whichever is further: a cut file's first length may be mended."""
    file.seek(4)
    (stated,) = struct.unpack(f"{order}I", file.read(4).ljust(4, b"\0"))
    position, data_end = 12, None
    while data_end is None and position + 8 <= size:
        file.seek(position)
        kind, length = struct.unpack(f"{order}4sI", file.read(8))
        if kind == b"data":
            if _is_unknown(length):
                return None
            data_end = position + 8 + length
        position += 8 + length + length % 2
    if _is_unknown(stated):
        return data_end
    return max(8 + stated, data_end or 0)


def _is_unknown(length: int) -> bool:
    return length == 0 or any(abs(length - unknown) <= _HEADERS for unknown in _UNKNOWN)


def _nist_end(head: bytes) -> int | None:
    """Of a NIST SPHERE file, whose header is text; a compressed one does not say."""
    fields = dict(re.findall(rb"^(\w+) -i (\d+)", head, re.MULTILINE))
    try:
        counts = [int(fields[key]) for key in (b"sample_count", b"channel_count", b"sample_n_bytes")]
    except KeyError:
        return None
    if b"shorten" in head or b"wavpack" in head:
        return None
    return int(head[8:16]) + counts[0] * counts[1] * counts[2]


def _last_page_ends(file: BinaryIO, size: int) -> bool:
    """Whether an Ogg file has all of its last page, and this is marked as the last of its stream."""
    file.seek(max(0, size - (1 << 17)))  # a page has less than 64 KiB
    tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < 27 or not page[5] & 4:
        return False
    segments = page[27 : 27 + page[26]]
    return len(page) >= 27 + page[26] + sum(segments)
