"""Whether what every branch needs loads: what would fail in each of them is better seen before the first.

Packages are imported by name alone: one that does not load is to be named, not met.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

from orchestrator.training.process import IMPORTED_ONCE
from scoring.errors import InputError

_TORCH = "torch torchaudio"  # torchaudio's libraries are linked against those of one torch
# Modules of other packages that a branch's process loads, and what to install together for each.
_PACKAGES = {
    **{name: name for name in ("numpy", "scipy", "pyarrow", "soundfile")},
    **{"sklearn": "scikit-learn", "torch": _TORCH, "torchaudio": _TORCH},
}


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis; `remedy` is empty where nothing is wrong."""

    name: str
    state: Literal["ok", "warning", "problem"]
    text: str
    remedy: str = ""


def unloadable() -> Iterator[Check]:
    """Each module of another package that does not load; then the first of tutti's own, if all others do."""
    faults = [fault for module in _PACKAGES for fault in _faults(module)]
    yield from faults or [fault for module in IMPORTED_ONCE for fault in _faults(module)][:1]


def check_installation() -> None:
    """Raise `InputError`, before minutes go into data, if a module does not load that every branch needs."""
    for fault in unloadable():
        raise InputError(f"{fault.text}; {fault.remedy}")


def _faults(module: str) -> Iterator[Check]:
    """What keeps a module from loading, if anything, and the command that installs another version of it."""
    try:
        import_module(module)
    except (ImportError, OSError) as error:  # an OSError where a library does not fit its neighbours
        reason = (str(error) or type(error).__name__).splitlines()[0]
        remedy = f"pip install --upgrade --force-reinstall {_PACKAGES.get(module, _TORCH)}"
        yield Check(module, "problem", f"{module} does not load: {reason}", remedy)
