"""Whether the packages that branches need load. What would fail in every branch is better seen before the first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import requires, version

from packaging.requirements import Requirement

from orchestrator.training.process import IMPORTED_ONCE
from scoring.errors import InputError

# Nothing else is imported here: a package that does not load is to be named, not met.

DISTRIBUTION = "tutti-asd"
# Modules of other packages that a branch's process loads, and the distributions to install together for each:
# torchaudio's libraries are linked against those of one torch.
_TORCH = ("torch", "torchaudio")
_DISTRIBUTIONS = {
    "numpy": ("numpy",),
    "scipy": ("scipy",),
    "sklearn": ("scikit-learn",),
    "pyarrow": ("pyarrow",),
    "soundfile": ("soundfile",),
    "torch": _TORCH,
    "torchaudio": _TORCH,
}


@dataclass(frozen=True)
class Fault:
    """A module that does not load, and the command that installs another version of it."""

    module: str
    text: str
    remedy: str


def faults() -> Iterator[Fault]:
    """Each module of another package that does not load; then the first of tutti's own, if all others do."""
    sound = True
    for module in _DISTRIBUTIONS:
        if (fault := _fault(module, _DISTRIBUTIONS[module])) is not None:
            sound = False
            yield fault
    if sound:
        yield from [fault for module in IMPORTED_ONCE if (fault := _fault(module, _TORCH)) is not None][:1]


def check_installation() -> None:
    """Import what every branch's process imports, before clips are decoded and Ray is started for nothing.

    Raises
    ------
    InputError
        Naming the package that does not load, and how to install another.
    """
    for fault in faults():
        raise InputError(f"{fault.text}; {fault.remedy}")


def _fault(module: str, distributions: tuple[str, ...]) -> Fault | None:
    try:
        import_module(module)
    except (ImportError, OSError) as error:  # an OSError where a library does not fit its neighbours
        versions = ", ".join(f"{name} {version(name)}" for name in distributions)
        reason = (str(error) or type(error).__name__).splitlines()[0]
        needed = {Requirement(text).name: text.partition(";")[0] for text in requires(DISTRIBUTION) or ()}
        wanted = " ".join(f"'{needed[name]}'" for name in distributions)
        return Fault(
            module,
            f"{module} does not load ({versions}): {reason}",
            f"pip install --upgrade --force-reinstall {wanted}",
        )
    return None
