"""Recordings in files → a table of scores; of long ones window by window, and none is then held whole."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import soundfile
from numpy.typing import NDArray

from branches.audio import read_clip
from branches.audio.containers import open_recording, opened
from branches.audio.sample_rate import at_16_khz, check_rate
from branches.beats.memory import TooLong
from branches.data.layout import CONVERT, READABLE, RECORDINGS, files
from branches.frames import MIN_SAMPLES, SAMPLE_RATE
from orchestrator.model.ensemble import BATCH, Ensemble
from scoring.clip_names import nfc, parse_clip_name
from scoring.errors import InputError, counted

log = logging.getLogger(__name__)

MIN_HOP = 0.01  # seconds; the log-mels have no finer step

# A recording's path, where in it the excerpt begins (seconds; None is all of it), and samples (n, channels) at 16 kHz.
Excerpt = tuple[Path, float | None, NDArray[np.float32]]


def recordings(paths: Iterable[Path]) -> list[Path]:
    """The files among these paths, and the recordings in folders among them; what else lies in these is logged.

    Raises InputError if a folder has none, or cannot be read.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = [file for file in files(path) if file.suffix.lower() in RECORDINGS]
        taken = [file for file in inside if file.parent == path and file.suffix.lower() in READABLE]
        where = Counter(f"{file.parent}/*{file.suffix}" for file in inside) - Counter(
            f"{path}/*{f.suffix}" for f in taken
        )
        left = ", ".join(f"{count} {name}" for name, count in where.most_common(5))
        below = any(file.parent != path for file in inside)
        foreign = any(file.suffix.lower() not in READABLE for file in inside)
        remedy = "; ".join(
            ["name sub-folders one by one"] * below + [f"{CONVERT} that libsndfile does not read"] * foreign
        )
        if not taken:
            raise InputError(f"{path}: no recordings in it" + (f", but {left}; {remedy}" if left else ""))
        if left:
            log.warning("%s: not taken: %s; %s", path, left, remedy)
        found += taken
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
    table: machine, section, clip, start of the window (seconds, if there is one), and the columns of `Ensemble.score`

    Raises InputError if a recording cannot be used or is shorter than a window, a window or hop is too short, or a
    machine and section is not known.
    """
    machine = machine or ensemble.only_machine
    by_group: dict[tuple[str, int], list[Path]] = {}
    for path in recordings(paths):
        of = nfc(machine or _machine_of(path, ensemble.machines))
        group = of, section_of(path) if section is None else section
        by_group.setdefault(group, []).append(path)
    for group, paths_of in by_group.items():
        normals = {*ensemble.reference(*group).clips}  # an unknown machine is told before minutes of work
        if banked := [path for path in paths_of if path.name in normals]:
            log.warning(
                "%s, in all %s of %s, has the name of a normal clip of the model; if it is that, its "
                "score is too low, since it is in its own reference",
                banked[0], counted(len(banked), "recording"), group[0],
            )  # fmt: skip
    tables = []
    for group, paths_of in by_group.items():
        excerpts = chain.from_iterable(_excerpts(path, window, hop) for path in paths_of)
        while batch := list(islice(excerpts, BATCH)):
            tables.append(_scored(ensemble, *group, batch))
    return pa.concat_tables(tables)


def _machine_of(path: Path, machines: Iterable[str]) -> str:
    parts = Path(os.path.abspath(path)).parts
    if len(parts) < 3 or parts[-2] not in ("train", "test"):
        raise InputError(f"{path}: not in a folder <machine>/test; give --machine, one of {', '.join(machines)}")
    return parts[-3]


def section_of(path: Path) -> int:
    """The section that a name of the challenge tells (`section_02_…`, `id_02_…`); 0 for any other name."""
    name = parse_clip_name(path.with_suffix(".wav").name)
    return name.section if name else 0


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
        with opened(path) as content, open_recording(content, str(path)) as file:
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
    except soundfile.LibsndfileError as error:
        raise InputError(f"{path}: not a readable recording ({error})") from None


def _scored(ensemble: Ensemble, machine: str, section: int, excerpts: Sequence[Excerpt]) -> pa.Table:
    paths, starts, clips = zip(*excerpts, strict=True)
    for path, start, samples in excerpts:
        if not start and (warning := ensemble.warning(machine, samples, section)):  # one window tells it of all
            log.warning("%s is %s, so its score and decision may mean little", path, warning)
    try:
        scores = ensemble.score(machine, clips, section)
    except TooLong as error:
        longest, _, _ = max(excerpts, key=lambda excerpt: len(excerpt[2]))
        raise InputError(f"{longest}: {error}") from None
    n = len(clips)
    columns = {"machine": [machine] * n, "section": [section] * n, "clip": [path.name for path in paths]}
    if starts[0] is not None:
        columns["start"] = starts
    return pa.table({**columns, **dict(zip(scores.column_names, scores.columns, strict=True))})
