"""What a check has found: every fault as one line that begins with its file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from scoring.metrics import Metrics

SHOWN = 3


@dataclass
class Findings:
    """Errors keep a package from being submitted; warnings are for a person to look at.

    metrics: of each system, where ground truth was given
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    metrics: dict[str, Metrics] = field(default_factory=dict)

    def error(self, location: str, text: str) -> None:
        """Something that must be mended in the file or folder `place`."""
        self.errors.append(_line(location, text))

    def warning(self, location: str, text: str) -> None:
        """Something odd but allowed in the file or folder `place`."""
        self.warnings.append(_line(location, text))


def _line(location: str, text: str) -> str:
    return " ".join(f"{location}: {text}".split())


def some(names: Iterable[object]) -> str:
    """The first names of many: `a, b, c and 5 more`."""
    listed = list(map(str, names))
    more = len(listed) - SHOWN
    return ", ".join(listed[:SHOWN]) + (f" and {more} more" if more > 0 else "")
