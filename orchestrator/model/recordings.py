"""Recordings in files → a table of scores."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from branches.audio import read_clip
from branches.beats.memory import TooLong
from orchestrator.model.ensemble import BATCH, Ensemble
from scoring.errors import InputError

log = logging.getLogger(__name__)

SUFFIXES = (".wav", ".flac")
_SECTION = re.compile(r"(?:section|(?:normal_|anomaly_)?id)_(\d+)_")


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


def score_clips(ensemble: Ensemble, paths: Sequence[Path], machine: str | None, section: int | None = None) -> pa.Table:
    """Scores of recordings: machine, section, clip, score, calibrated, threshold, anomaly, and branches' contributions.

    machine: None takes the only one that the model knows, or else it from the path, as in the challenge's layout
        `<machine>/test/<clip>`
    section: None takes it from the clip's name, see `section_of`

    Raises
    ------
    InputError
        If a recording cannot be used, or its machine and section are not known.
    """
    machine = machine or ensemble.only_machine
    by_group: dict[tuple[str, int], list[Path]] = {}
    for path in recordings(paths):
        group = machine or _machine_of(path, ensemble.machines), section_of(path) if section is None else section
        by_group.setdefault(group, []).append(path)
    for group in by_group:
        ensemble.reference(*group)  # an unknown machine is told before minutes of work
    _warn_of_normals(ensemble, by_group)
    rows = [row for group, paths in by_group.items() for row in _rows(ensemble, *group, paths)]
    return pa.Table.from_pylist(rows)


def _warn_of_normals(ensemble: Ensemble, by_group: Mapping[tuple[str, int], Sequence[Path]]) -> None:
    keys = zip(*(ensemble.clips[column].to_pylist() for column in ("machine", "section", "clip")), strict=True)
    normals = set(keys)
    banked = [path for group, paths in by_group.items() for path in paths if (*group, path.name) in normals]
    if banked:
        more = f" and {len(banked) - 1} more" if len(banked) > 1 else ""
        log.warning(
            "%s%s: called like a normal clip of the model; the score of that very clip would be too low, since it is "
            "in its own reference: the run's fused.parquet has cross-fitted scores",
            banked[0],
            more,
        )


def _machine_of(path: Path, machines: Iterable[str]) -> str:
    parts = Path(os.path.abspath(path)).parts
    if len(parts) < 3 or parts[-2] not in ("train", "test"):
        raise InputError(f"{path}: not in a folder <machine>/test; give --machine, one of {', '.join(machines)}")
    return parts[-3]


def section_of(path: Path) -> int:
    """The section that a name of the challenge tells (`section_02_…`, `id_02_…`); 0 for any other name."""
    match = _SECTION.match(path.name)
    return int(match[1]) if match else 0


def warn_of_differences(ensemble: Ensemble, machine: str, samples: NDArray[np.float32], name: str) -> None:
    """Log in what a recording (samples, channels) at 16 kHz is unlike the clips that the model was made with."""
    if differences := ensemble.differences(machine, samples):
        log.warning("%s is unlike the clips of %s, so its score and decision may mean little: it is %s",
                    name, machine, differences)  # fmt: skip


def _rows(ensemble: Ensemble, machine: str, section: int, paths: Sequence[Path]) -> list[dict[str, object]]:
    names = [member.name for member in ensemble.manifest.members]
    rows: list[dict[str, object]] = []
    for first in range(0, len(paths), BATCH):
        some = paths[first : first + BATCH]
        clips = [read_clip(path) for path in some]
        for path, samples in zip(some, clips, strict=True):
            warn_of_differences(ensemble, machine, samples, str(path))
        try:
            scores = ensemble.score(machine, clips, section)
        except TooLong as error:
            raise InputError(f"{max(zip(map(len, clips), some, strict=True))[1]}: {error}") from None
        for i, path in enumerate(some):
            rows.append(
                {
                    "machine": machine,
                    "section": section,
                    "clip": path.name,
                    "score": float(scores.score[i]),
                    "calibrated": float(scores.calibrated[i]),
                    "threshold": scores.threshold,
                    "anomaly": bool(scores.anomaly[i]),
                    "contributions": [
                        {"branch": branch, "contribution": part}
                        for branch, part in zip(names, scores.contributions[:, i].tolist(), strict=True)
                    ],
                }
            )
    return rows
