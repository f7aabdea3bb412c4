"""What a clip is a recording of: machine, section, domain and attributes, and how the network is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scoring.errors import InputError


@dataclass(frozen=True)
class Condition:
    """What is recorded; two clips of one condition differ by chance alone."""

    machine: str
    section: int
    domain: str
    attributes: tuple[tuple[str, str], ...]

    @property
    def group(self) -> str:
        """Machine and section: what clips must share to be references of each other."""
        return f"{self.machine}/section_{self.section:02d}"

    def __str__(self) -> str:
        """E.g. `fan/section_00/target/spd=3`."""
        return "/".join([self.group, self.domain, *(f"{k}={v}" for k, v in self.attributes)])

    def words(self) -> list[str]:
        """The parts that have an embedding of their own; what they mean is the machine's own matter.

        An attribute is told by its place too, since a key may come twice.
        """
        attributes = (f"{self.group}/{position}:{k}={v}" for position, (k, v) in enumerate(self.attributes))
        return [self.group, f"{self.group}/{self.domain}", *attributes]


def conditions_of(index: pa.Table) -> list[Condition]:
    """The condition of each row of a clip index."""
    columns = (index[c].to_pylist() for c in ("machine", "section", "domain", "attributes"))
    return [Condition(m, s, d, tuple(a)) for m, s, d, a in zip(*columns, strict=True)]


def rare_conditions(conditions: Sequence[Condition], fill: float) -> dict[Condition, int]:
    """How many clips each condition lacks to `fill` times the commonest one of its machine and section."""
    counts = Counter(conditions)
    largest = commonest(counts)
    lacking = {c: round(fill * largest[c.group]) - counts[c] for c in sorted(counts, key=str)}
    return {c: n for c, n in lacking.items() if n > 0}


def commonest(counts: Mapping[Condition, int]) -> dict[str, int]:
    """Clips of the commonest condition of each machine and section."""
    largest: dict[str, int] = {}
    for condition, n in counts.items():
        largest[condition.group] = max(largest.get(condition.group, 0), n)
    return largest


class Vocabulary:
    """Numbers the words of conditions from 1; 0 stands for no word."""

    def __init__(self, conditions: Iterable[Condition]) -> None:
        words = sorted({word for condition in conditions for word in condition.words()})
        self._numbers = {word: number for number, word in enumerate(words, 1)}

    def __len__(self) -> int:
        return 1 + len(self._numbers)

    def encode(self, conditions: Sequence[Condition]) -> NDArray[np.int64]:
        """Words of each condition: (n, longest), padded with 0.

        Any combination of known words will do. Raises `InputError` naming a word that is not known.
        """
        unknown = {word for condition in conditions for word in condition.words()} - self._numbers.keys()
        if unknown:
            raise InputError(f"no training clip has {min(unknown)}; the generator knows only what it was trained on")
        rows = [[self._numbers[word] for word in condition.words()] for condition in conditions]
        width = max(map(len, rows))
        return np.array([row + [0] * (width - len(row)) for row in rows], np.int64)
