"""The plan: which branches the systems need, each once, and what identifies them."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from branches.spec import BranchSpec
from fusion.hierarchy import Tree
from orchestrator.spec import ConfigurationSpec, SystemSpec
from scoring.detectors import DetectorSpec
from scoring.errors import InputError

_ROOT = Path(__file__).resolve().parent.parent
SCORE_CODE = ("branches", "scoring")
_NO_SCORE_DEPENDS_ON = ("synthetic.py", "synthetic_machines.py", "decisions.py", "bootstrap.py", "errors.py")


@dataclass(frozen=True)
class Branch:
    """One training, and the detectors that score its embeddings.

    name: where it stands in the first system that needs it, for people
    """

    branch_id: str
    config_id: str
    name: str
    systems: tuple[str, ...]
    spec: BranchSpec
    detectors: tuple[DetectorSpec, ...]


@dataclass(frozen=True)
class Plan:
    """All branches of the systems, and each system's tree of score tables named `<branch_id>/<detector>`."""

    branches: tuple[Branch, ...]
    trees: dict[str, Tree]


def detector_id(detector: DetectorSpec) -> str:
    """A name for files, with the settings that are not the default: `mahalanobis`, `knn-k4`."""
    settings = detector.model_dump(exclude={"name"}, exclude_defaults=True)
    return "-".join([detector.name, *(f"{key}{value}" for key, value in sorted(settings.items()))])


def make_plan(systems: Sequence[SystemSpec], fingerprint: str) -> Plan:
    """Collect the branches of all systems on the data set with this fingerprint."""
    found: dict[str, Branch] = {}
    trees: dict[str, Tree] = {}
    for system in systems:
        trees[system.name] = {
            subsystem: {
                name: [
                    _add(found, _branch(c, seed, system.name, f"{subsystem}/{name}/{seed}", fingerprint))
                    for seed in c.seeds
                ]
                for name, c in configurations.items()
            }
            for subsystem, configurations in system.subsystems.items()
        }
    return Plan(tuple(found.values()), trees)


def _add(found: dict[str, Branch], branch: Branch) -> str:
    """Put a branch with one detector among those found, and name its table."""
    found[branch.branch_id] = _merge(found.get(branch.branch_id), branch)
    return table_names(branch)[0]


def table_names(branch: Branch) -> list[str]:
    """Names of a branch's score tables in the plan's trees."""
    return [f"{branch.branch_id}/{detector_id(detector)}" for detector in branch.detectors]


def without(plan: Plan, tables: Set[str]) -> Plan:
    """The plan without these score tables; a system of which nothing is left has an empty tree."""
    trees: dict[str, Tree] = {}
    for name, tree in plan.trees.items():
        kept = {s: {c: [t for t in ts if t not in tables] for c, ts in cs.items()} for s, cs in tree.items()}
        filled = {s: {c: ts for c, ts in cs.items() if ts} for s, cs in kept.items()}
        trees[name] = {s: cs for s, cs in filled.items() if cs}
    return Plan(plan.branches, trees)


def _branch(c: ConfigurationSpec, seed: int, system: str, name: str, fingerprint: str) -> Branch:
    spec = c.branch.as_used().model_copy(update={"seed": seed})
    config = identity(spec.model_dump(exclude={"seed"}))
    return Branch(
        branch_id=digest([config, seed, fingerprint, code_version(*SCORE_CODE)]),
        config_id=digest(config),
        name=name,
        systems=(system,),
        spec=spec,
        detectors=(c.detector,),
    )


def _merge(known: Branch | None, new: Branch) -> Branch:
    if known is None:
        return new
    return Branch(
        known.branch_id,
        known.config_id,
        known.name,
        tuple(dict.fromkeys([*known.systems, *new.systems])),
        known.spec,
        tuple(dict.fromkeys([*known.detectors, *new.detectors])),
    )


def identity(settings: Any) -> Any:
    """Settings as they count: a file with a digest by its content, not by where it lies."""
    if isinstance(settings, dict):
        place = ("path",) if settings.get("sha256") else ()
        return {key: identity(value) for key, value in settings.items() if key not in place}
    if isinstance(settings, (list, tuple)):
        return [identity(value) for value in settings]
    return settings


def digest(value: Any) -> str:
    """16 hex digits of the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@cache
def code_version(*packages: str) -> str:
    """Hash of the code of packages, or of single files, without comments, docstrings and formatting.

    Files that no score depends on are left out.
    """
    hashed = hashlib.sha256()
    places = [_ROOT / package for package in packages]
    for path in sorted(path for place in places for path in ([place] if place.is_file() else place.rglob("*.py"))):
        if path.name not in _NO_SCORE_DEPENDS_ON:
            hashed.update(f"{path.relative_to(_ROOT)}\0{_bare_code(path)}\0".encode())
    return hashed.hexdigest()[:16]


def require_code(expected: str) -> None:
    """Raise `InputError` if this node's code is not the driver's: it would make other scores under the same id."""
    if code_version(*SCORE_CODE) != expected:
        raise InputError("this node has another version of tutti than the driver; install the same on all nodes")


def _bare_code(path: Path) -> str:
    """The code without comments, formatting, docstrings and other strings that stand alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [line for line in body if not _is_text(line)] or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)
