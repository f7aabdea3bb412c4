"""The code of tutti that a packaged ensemble takes along: what its MLflow model imports, and nothing else."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

ENTRY = Path(__file__).with_name("mlflow_model.py")
_ROOT = Path(__file__).resolve().parents[2]
_OURS = ("orchestrator", "branches", "fusion", "scoring")


def copy_code(folder: Path) -> list[Path]:
    """Copy the modules that `ENTRY` needs into `folder`; the packages that lie there then."""
    for path in shipped_modules():
        target = folder / path.relative_to(_ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return sorted(folder.iterdir())


def shipped_modules() -> list[Path]:
    """Files of the modules that `ENTRY` imports, and of those that they import."""
    found: dict[str, Path] = {}
    waiting = list(_imported(ENTRY))
    while waiting:
        name = waiting.pop()
        path = _file_of(name)
        if path is not None and name not in found:
            found[name] = path
            waiting += [name.rpartition(".")[0], *_imported(path)]
    return sorted(found.values())


def _imported(path: Path) -> Iterator[str]:
    """Dotted names that a module imports anywhere; some of them are of functions and classes."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _file_of(name: str) -> Path | None:
    """The file of a module or package of ours, or None."""
    first, *others = name.split(".")
    if first not in _OURS:
        return None
    place = _ROOT.joinpath(first, *others)
    return next((p for p in (place / "__init__.py", place.with_suffix(".py")) if p.exists()), None)
