"""Recordings in files → a table of scores; of long ones window by window, and none is then held whole."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import soundfile
from numpy.typing import NDArray

from branches.audio import read_clip
from branches.audio.containers import open_recording
from branches.audio.sample_rate import at_16_khz, check_rate
from branches.beats.memory import TooLong
from branches.frames import MIN_SAMPLES, SAMPLE_RATE
from orchestrator.model.ensemble import BATCH, Ensemble
from scoring.errors import InputError

log = logging.getLogger(__name__)

SUFFIXES = (".wav", ".flac")
MIN_HOP = 0.01  # seconds; the log-mels have no finer step
_SECTION = re.compile(r"(?:section|(?:normal_|anomaly_)?id)_(\d+)_")

# A recording's path, where in it the excerpt begins (seconds; None is all of it), and samples (n, channels) at 16 kHz.
Excerpt = tuple[Path, float | None, NDArray[np.float32]]


def recordings(paths: Iterable[Path]) -> list[Path]:
    """The files among these paths, and the recordings in folders among them; `InputError` if a folder has none."""
    found: list[Path] = []
    for path in paths:
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise InputError(f"{path}: no .wav or .flac in it")
        found += inside
    return found


def score_clips(
    ensemble: Ensemble,
    paths: Sequence[Path],
    machine: str | None = None,
    section: int | None = None,
    window: float | None = None,
    hop: float | None = None,
) -> pa.Table:
    """Scores of recordings, or of windows of them, each judged by itself.

    Parameters
    ----------
    machine: None takes the only one that the model knows, or else it from the path, as in the challenge's layout
        `<machine>/test/<clip>`
    section: None takes it from the clip's name, see `section_of`
    window: seconds; best is the length of the clips that the model was made with. What is left at a recording's end
        and shorter is not scored
    hop: seconds from window to window; None takes half a window

    Returns
    -------
    table: machine, section, clip, start of the window (seconds, if there is one), score, calibrated, threshold,
        anomaly, and the branches' contributions

    Raises
    ------
    InputError
        If a recording cannot be used or is shorter than a window, a window or hop is too short, or a machine and
        section is not known.
    """
    machine = machine or ensemble.only_machine
    by_group: dict[tuple[str, int], list[Path]] = {}
    for path in recordings(paths):
        group = machine or _machine_of(path, ensemble.machines), section_of(path) if section is None else section
        by_group.setdefault(group, []).append(path)
    for group in by_group:
        ensemble.reference(*group)  # an unknown machine is told before minutes of work
    _warn_of_normals(ensemble, by_group)
    rows: list[dict[str, object]] = []
    for group, files in by_group.items():
        excerpts = chain.from_iterable(_excerpts(path, window, hop) for path in files)
        while batch := list(islice(excerpts, BATCH)):
            rows += _rows(ensemble, *group, batch)
    return pa.Table.from_pylist(rows)


def _warn_of_normals(ensemble: Ensemble, by_group: Mapping[tuple[str, int], Sequence[Path]]) -> None:
    normals = {*zip(*(ensemble.clips[key].to_pylist() for key in ("machine", "section", "clip")), strict=True)}
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


def _excerpts(path: Path, window: float | None, hop: float | None) -> Iterator[Excerpt]:
    """A recording, or its windows; of these one is held at a time, however long the recording is."""
    if window is None:
        yield path, None, read_clip(path)
        return
    hop = window / 2 if hop is None else hop
    if window * SAMPLE_RATE < MIN_SAMPLES or not MIN_HOP <= hop <= window:
        raise InputError(
            f"windows of {window:g} s every {hop:g} s: a window has at least {MIN_SAMPLES / SAMPLE_RATE:g} s, and "
            f"a hop at least {MIN_HOP:g} s and at most a window"
        )
    try:
        with path.open("rb") as content, open_recording(content, str(path)) as file:
            check_rate(file.samplerate, str(path))
            length, step = round(window * file.samplerate), round(hop * file.samplerate)
            if file.frames < length:
                raise InputError(f"{path}: shorter than one window of {window:g} s")
            for i, block in enumerate(file.blocks(length, length - step, dtype="float32", always_2d=True)):
                start = i * step / file.samplerate
                if not np.isfinite(block).all():
                    raise InputError(f"{path} at {start:.1f} s: a sample is not a finite number")
                if len(block) == length:
                    yield path, start, at_16_khz(block, file.samplerate, str(path))
    except (soundfile.LibsndfileError, OSError) as error:
        raise InputError(f"{path}: not a readable recording ({error})") from None


def _rows(ensemble: Ensemble, machine: str, section: int, excerpts: Sequence[Excerpt]) -> list[dict[str, object]]:
    for path, start, samples in excerpts:
        differences = "" if start else ensemble.differences(machine, samples)  # one window tells it of all
        if differences:
            log.warning(
                "%s is unlike the clips of %s, so its score and decision may mean little: it is %s",
                path, machine, differences,
            )  # fmt: skip
    clips = [samples for _, _, samples in excerpts]
    try:
        scores = ensemble.score(machine, clips, section)
    except TooLong as error:
        longest, _, _ = max(excerpts, key=lambda excerpt: len(excerpt[2]))
        raise InputError(f"{longest}: {error}") from None
    rows: list[dict[str, object]] = []
    for (path, start, _), scored in zip(excerpts, scores.rows(), strict=True):
        place = {"machine": machine, "section": section, "clip": path.name}
        parts = [{"branch": b, "contribution": part} for b, part in scored["contributions"].items()]
        rows.append({**place, **({} if start is None else {"start": start}), **scored, "contributions": parts})
    return rows
