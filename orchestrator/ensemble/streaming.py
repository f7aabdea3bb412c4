"""A long recording, window by window: a score over time, whatever its length."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import soundfile
import torch
import torchaudio
from numpy.typing import NDArray

from branches.frontend import MIN_SAMPLES, SAMPLE_RATE
from orchestrator.ensemble.ensemble import BATCH, Ensemble
from scoring.errors import InputError


def score_over_time(
    ensemble: Ensemble, machine: str, recording: Path, window: float, hop: float, section: int = 0
) -> pa.Table:
    """Scores of windows of a recording: columns start (seconds), score, calibrated, anomaly.

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
    if window * SAMPLE_RATE < MIN_SAMPLES or not 0 < hop <= window:
        raise InputError(
            f"windows of {window:g} s every {hop:g} s: a window has at least {MIN_SAMPLES / SAMPLE_RATE:.2f} s, and "
            "a hop is longer than 0 and no longer than the window"
        )
    columns: dict[str, list[NDArray[np.generic]]] = {"score": [], "calibrated": [], "anomaly": []}
    for windows in _batches(recording, window, hop):
        found = ensemble.score(machine, windows, section)
        for name, parts in columns.items():
            parts.append(getattr(found, name))
    if not columns["score"]:
        raise InputError(f"{recording}: shorter than one window of {window:g} s")
    arrays = {name: np.concatenate(parts) for name, parts in columns.items()}
    start = hop * np.arange(len(arrays["score"]))
    return pa.table({"start": start, **arrays})


def _batches(recording: Path, window: float, hop: float) -> Iterator[list[NDArray[np.float32]]]:
    """Windows (samples, channels) at 16 kHz, some at a time, so that memory does not grow with the recording."""
    batch: list[NDArray[np.float32]] = []
    try:
        with soundfile.SoundFile(recording) as file:
            length, step = round(window * file.samplerate), round(hop * file.samplerate)
            for block in file.blocks(length, length - step, dtype="float32", always_2d=True):
                if len(block) == length:
                    batch.append(_at_16_khz(block, file.samplerate))
                if len(batch) == BATCH:
                    yield batch
                    batch = []
    except (soundfile.LibsndfileError, OSError) as error:
        raise InputError(f"{recording}: not a readable recording ({error})") from None
    if batch:
        yield batch


def _at_16_khz(samples: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    if not np.isfinite(samples).all():
        raise InputError("a sample is not a finite number")
    if rate == SAMPLE_RATE:
        return samples
    resampled = torchaudio.functional.resample(torch.from_numpy(samples.T.copy()), rate, SAMPLE_RATE)
    found: NDArray[np.float32] = resampled.T.numpy()
    return found


def plot_over_time(scores: pa.Table, threshold: float, title: str, path: Path) -> None:
    """Draw scores over time with the threshold; the suffix of `path` says the format (.svg, .png, .pdf)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    start, score = scores["start"].to_numpy(), scores["score"].to_numpy()
    above = score > threshold
    axes.plot(start, score, color="#0072B2", linewidth=1.2, label="score")
    axes.plot(start[above], score[above], "s", color="#D55E00", markersize=4, label="anomaly")
    axes.axhline(threshold, color="black", linestyle="--", linewidth=1, label="threshold")
    axes.set(xlabel="start of the window, s", ylabel="score", title=title)
    axes.legend(loc="upper left", fontsize="small")
    try:
        figure.savefig(path)
    except ValueError as error:
        raise InputError(f"{path}: {error}; use .png, .svg or .pdf") from None
