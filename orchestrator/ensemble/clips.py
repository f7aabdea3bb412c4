"""Recordings in files → a table of scores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from branches.audio import read_clip
from orchestrator.ensemble.ensemble import BATCH, Ensemble
from scoring.errors import InputError

SUFFIXES = (".wav", ".flac")


def recordings(paths: Iterable[Path]) -> list[Path]:
    """The files among these paths, and the recordings in folders among them.

    Raises
    ------
    InputError
        If a path does not exist, or a folder has no recording in it.
    """
    found: list[Path] = []
    for path in paths:
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not inside or not path.exists():
            raise InputError(f"{path}: {'no .wav or .flac in it' if path.exists() else 'no such file'}")
        found += inside
    return found


def score_clips(ensemble: Ensemble, paths: Sequence[Path], machine: str | None, section: int = 0) -> pa.Table:
    """Scores of recordings: machine, clip, score, calibrated, threshold, anomaly and each branch's contribution.

    machine: None takes it from the path, as in the challenge's layout `<machine>/test/<clip>`

    Raises
    ------
    InputError
        If a recording cannot be used, or its machine is not known.
    """
    by_machine: dict[str, list[Path]] = {}
    for path in recordings(paths):
        by_machine.setdefault(machine or _machine_of(path), []).append(path)
    for name in by_machine:
        ensemble.reference(name, section)  # an unknown machine is told before minutes of work
    rows = [row for name, own in by_machine.items() for row in _rows(ensemble, name, section, own)]
    return pa.Table.from_pylist(rows)


def _machine_of(path: Path) -> str:
    parts = path.resolve().parts
    if len(parts) < 3 or parts[-2] not in ("train", "test"):
        raise InputError(f"{path}: not in a folder <machine>/test; give --machine")
    return parts[-3]


def _rows(ensemble: Ensemble, machine: str, section: int, paths: Sequence[Path]) -> list[dict[str, object]]:
    names = [member.name for member in ensemble.manifest.members]
    rows: list[dict[str, object]] = []
    for first in range(0, len(paths), BATCH):
        some = paths[first : first + BATCH]
        found = ensemble.score(machine, [read_clip(path) for path in some], section)
        for i, path in enumerate(some):
            rows.append(
                {
                    "machine": machine,
                    "clip": path.name,
                    "score": float(found.score[i]),
                    "calibrated": float(found.calibrated[i]),
                    "threshold": found.threshold,
                    "anomaly": bool(found.anomaly[i]),
                    "contributions": [
                        {"branch": branch, "contribution": part}
                        for branch, part in zip(names, found.contributions[:, i].tolist(), strict=True)
                    ],
                }
            )
    return rows
