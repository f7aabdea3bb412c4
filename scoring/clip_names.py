"""What the challenge's clip names say, and how they are put together.

section_00_source_train_normal_0000_spd_1.wav     2021–2026; attributes or `noAttribute` at the end
section_00_0000.wav                               evaluation: domain and condition are hidden
normal_id_06_00000933.wav                         2020: the id is the section, there is one domain
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

_SECTION_NAME = re.compile(
    r"section_(?P<section>\d+)"
    r"(?:_(?P<domain>source|target))?(?:_(?P<split>train|test))?(?:_(?P<condition>normal|anomaly))?"
    r"_(?P<number>\d{4,8})(?:_(?P<attributes>.+))?\.wav"
)
_ID_NAME = re.compile(r"(?:(?P<condition>normal|anomaly)_)?id_(?P<section>\d+)_(?P<number>\d{8})\.wav")


class ClipName(NamedTuple):
    """The parts of a name; None where it does not say.

    attributes: the operating state as pairs in the order of the name: a key may come twice (`mic_2_mic_1`), and a word
        left over has the empty key (2021 has such)
    """

    section: int
    domain: str | None
    split: str | None
    condition: str | None
    attributes: tuple[tuple[str, str], ...] = ()

    def file_name(self, number: int) -> str:
        """The name of a clip, as since 2021."""
        words = ["section", f"{self.section:02d}", self.domain, self.split, self.condition, f"{number:04d}"]
        attributes = [word for pair in self.attributes for word in pair] or ["noAttribute"]
        return "_".join(filter(None, [*words, *attributes])) + ".wav"


def parse_clip_name(name: str) -> ClipName | None:
    """The parts of a clip's name, or None if it is none of the challenge's."""
    if match := _SECTION_NAME.fullmatch(name):
        section, domain, split, condition, _, attributes = match.groups()
        return ClipName(int(section), domain, split, condition, attribute_pairs(attributes or ""))
    if match := _ID_NAME.fullmatch(name):
        # 2020 has one domain, and the banks call the main one source.
        return ClipName(int(match["section"]), "source", None, match["condition"])
    return None


def attribute_pairs(text: str) -> tuple[tuple[str, str], ...]:
    """`spd_1_mic_2` → (("spd", "1"), ("mic", "2")); none of `noAttribute`."""
    words = [] if text in ("", "noAttribute") else text.split("_")
    if len(words) % 2:
        words.insert(-1, "")
    return tuple(zip(words[::2], words[1::2], strict=True))


def is_of_2020(name: str) -> bool:
    """Whether a name has the form of 2020, whose figures follow another rule."""
    return _ID_NAME.fullmatch(name) is not None


def nfc(name: str) -> str:
    """The form in which names are compared: `ü` may be one character, as typed, or two, as a Mac writes it."""
    return unicodedata.normalize("NFC", name)


def unicode_forms(name: str) -> tuple[str, str, str]:
    """A name as it is, and in the two forms that a file system may hold it in."""
    return name, nfc(name), unicodedata.normalize("NFD", name)
