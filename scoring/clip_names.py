"""What the challenge's clip names say.

section_00_source_train_normal_0000_spd_1.wav     2021–2026; attributes or `noAttribute` at the end
section_00_0000.wav                               evaluation: domain and condition are hidden
normal_id_06_00000933.wav                         2020: the id is the section, there is one domain
"""

from __future__ import annotations

import re
from typing import NamedTuple

_SECTION_NAME = re.compile(
    r"section_(?P<section>\d+)"
    r"(?:_(?P<domain>source|target))?(?:_(?P<split>train|test))?(?:_(?P<condition>normal|anomaly))?"
    r"_(?P<number>\d{4,8})(?:_(?P<attributes>.+))?\.wav"
)
_ID_NAME = re.compile(r"(?:(?P<condition>normal|anomaly)_)?id_(?P<section>\d+)_(?P<number>\d{8})\.wav")


class ClipName(NamedTuple):
    """The parts of a name; None where it does not say."""

    section: int
    domain: str | None
    split: str | None
    condition: str | None
    attributes: str | None


def parse_clip_name(name: str) -> ClipName | None:
    """The parts of a clip's name, or None if it is none of the challenge's."""
    if match := _SECTION_NAME.fullmatch(name):
        fields = match.groupdict()
        return ClipName(int(match["section"]), *(fields[field] for field in ClipName._fields[1:]))
    if match := _ID_NAME.fullmatch(name):
        # 2020 has one domain, and the banks call the main one source.
        return ClipName(int(match["section"]), "source", None, match["condition"], None)
    return None


def is_of_2020(name: str) -> bool:
    """Whether a name has the form of 2020, whose figures follow another rule."""
    return _ID_NAME.fullmatch(name) is not None
