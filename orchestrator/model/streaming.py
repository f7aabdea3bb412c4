"""A long recording, window by window: a score over time, whatever its length."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import soundfile
from numpy.typing import NDArray

from branches.audio.containers import open_recording
from branches.audio.sample_rate import at_16_khz, check_rate
from branches.frames import MIN_SAMPLES, SAMPLE_RATE
from orchestrator.model.ensemble import BATCH, Ensemble
from orchestrator.model.recordings import warn_of_differences
from scoring.errors import InputError

MIN_HOP = 0.01  # seconds; the log-mels have no finer step

Window = tuple[float, NDArray[np.float32]]


def score_over_time(
    ensemble: Ensemble, machine: str, recording: Path, window: float, hop: float, section: int = 0
) -> pa.Table:
    """Scores of windows of a recording: columns start (seconds), score, calibrated, threshold, anomaly.

    Each window is judged by itself, as a clip of that length; the model is at its best at the length of the clips it
    was made with. What is left at the end and shorter than a window is not scored.

    Parameters
    ----------
    window, hop: seconds; windows overlap where `hop` is shorter

    Raises
    ------
    InputError
        If the recording cannot be read or is shorter than a window, or a window or hop is too short.
    """
    if window * SAMPLE_RATE < MIN_SAMPLES or not MIN_HOP <= hop <= window:
        raise InputError(
            f"windows of {window:g} s every {hop:g} s: a window has at least {MIN_SAMPLES / SAMPLE_RATE:g} s, and "
            f"a hop at least {MIN_HOP:g} s and at most a window"
        )
    threshold = ensemble.reference(machine, section).threshold
    columns: dict[str, list[NDArray[np.generic]]] = {"start": [], "score": [], "calibrated": [], "anomaly": []}
    for batch in _batches(recording, window, hop):
        if not columns["start"]:
            warn_of_differences(ensemble, machine, batch[0][1], f"a window of {recording}")
        scores = ensemble.score(machine, [samples for _, samples in batch], section)
        start = np.array([seconds for seconds, _ in batch])
        for name, part in zip(columns, (start, scores.score, scores.calibrated, scores.anomaly), strict=True):
            columns[name].append(part)
    if not columns["start"]:
        raise InputError(f"{recording}: shorter than one window of {window:g} s")
    table = pa.table({name: np.concatenate(parts) for name, parts in columns.items()})
    return table.add_column(3, "threshold", pa.array(np.full(table.num_rows, threshold)))


def _batches(recording: Path, window: float, hop: float) -> Iterator[list[Window]]:
    """Windows (samples, channels) at 16 kHz and where they begin, some at a time: a recording is never held whole."""
    batch: list[Window] = []
    try:
        with recording.open("rb") as content, open_recording(content, str(recording)) as file:
            check_rate(file.samplerate, str(recording))
            length, step = round(window * file.samplerate), round(hop * file.samplerate)
            blocks = file.blocks(length, length - step, dtype="float32", always_2d=True)
            for i, block in enumerate(blocks):
                if len(block) == length:
                    start = i * step / file.samplerate
                    batch.append((start, _resampled(block, file.samplerate, f"{recording} at {start:.1f} s")))
                if len(batch) == BATCH:
                    yield batch
                    batch = []
    except (soundfile.LibsndfileError, OSError) as error:
        raise InputError(f"{recording}: not a readable recording ({error})") from None
    if batch:
        yield batch


def _resampled(samples: NDArray[np.float32], rate: int, name: str) -> NDArray[np.float32]:
    if not np.isfinite(samples).all():
        raise InputError(f"{name}: a sample is not a finite number")
    return at_16_khz(samples, rate, name)


def plot_over_time(scores: pa.Table, title: str, path: Path) -> None:
    """Draw scores over time with the threshold; the suffix of `path` says the format (.svg, .png, .pdf)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    start, score, anomaly = (scores[name].to_numpy() for name in ("start", "score", "anomaly"))
    axes.plot(start, score, color="#0072B2", linewidth=1.2, label="score")
    axes.plot(start[anomaly], score[anomaly], "s", color="#D55E00", markersize=4, label="anomaly")
    axes.axhline(scores["threshold"][0].as_py(), color="black", linestyle="--", linewidth=1, label="threshold")
    axes.set(xlabel="start of the window, s", ylabel="score", title=title)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    figure.savefig(path)
