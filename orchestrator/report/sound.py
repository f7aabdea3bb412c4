"""The clips that a system is most wrong about, to look at and to listen to: spectrogram and sound are in the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
from matplotlib.figure import Figure
from numpy.typing import NDArray

from branches.audio import read_clip
from branches.data.importing import original_names
from branches.data.layout import FOLDERS, find
from orchestrator.report.collect import System
from scoring.errors import InputError
from scoring.table import rows_of


@dataclass(frozen=True)
class Recording:
    """One clip of a page.

    mistake: `false alarm`, `miss` or, without labels, `highest score`
    score: calibrated
    changed: what stands out against the training clips, in words; empty if nothing does, or these are not there
    spectrogram, sound: PNG and FLAC of the first channel, as data URIs
    """

    mistake: str
    machine: str
    clip: str
    seconds: float
    score: float
    changed: str
    spectrogram: str
    sound: str


def most_wrong(system: System, count: int, data: Path | None) -> list[Recording]:
    """The false alarms with the highest scores and the misses with the lowest; without labels the highest scores.

    Scores are the calibrated ones, which mean the same on all machines.

    Parameters
    ----------
    count: of each kind of mistake
    data: the data set; None takes it from where the run had it

    Raises InputError if the recordings are not there.
    """
    from branches.spectra import Spectrum, spectrum_of  # loads torch

    root = data or Path(system.result["made"].get("data", "unknown"))
    if not root.is_dir():
        raise InputError(f"{root}: the run's recordings are not there; name their data set with --data")
    names = ["machine", "section", "clip", "split", "condition", "calibrated"]
    machine, section, clip, split, condition, score = rows_of(system.fused, names)
    test = split == "test"

    @cache
    def spectrum(name: str, number: int) -> Spectrum | None:
        normals = clip[(split == "train") & (machine == name) & (section == number)]
        return spectrum_of([find(root, f"{name}/train/{normal}") for normal in normals])

    mistakes = {
        "false alarm": (test & (condition == "normal"), -score),
        "miss": (test & (condition == "anomaly"), score),
    }
    if not any(rows.any() for rows, _ in mistakes.values()):
        mistakes = {"highest score": (test, -score)}
    before = original_names(root)  # of a data set that `tutti data import` made
    recordings = []
    for mistake, (rows, order) in mistakes.items():
        for row in [row for row in np.argsort(order, kind="stable") if rows[row]][:count]:
            found = (find(root, f"{machine[row]}/{folder}/{clip[row]}") for folder in FOLDERS)
            path = next(filter(None, found), None)
            if path is None:
                raise InputError(f"{root / machine[row]}: no {clip[row]} in it; name the run's data set with --data")
            name = before.get(path.relative_to(root).as_posix(), path.name)
            samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
            near, sound = samples[:, 0], io.BytesIO()
            soundfile.write(sound, near, rate, format="FLAC", subtype="PCM_16")
            look, listen = _spectrogram(near, rate), _data_uri("audio/flac", sound)
            usual = spectrum(machine[row], section[row])
            changed = usual.change(read_clip(path)) if usual else ""
            about = mistake, machine[row], name, len(near) / rate, float(score[row]), changed
            recordings.append(Recording(*about, look, listen))
    return recordings


def _spectrogram(samples: NDArray[np.float32], rate: int) -> str:
    drawn, picture = Figure((3.4, 1.5)), io.BytesIO()
    axes = drawn.subplots()
    faint = np.random.default_rng(0).normal(scale=1e-9, size=len(samples))  # silence has no logarithm
    axes.specgram(samples + faint, NFFT=512, noverlap=256, Fs=rate, cmap="cividis")
    axes.set(xticks=[], yticks=[0, rate / 4, rate / 2], yticklabels=["0", f"{rate / 4000:g}", f"{rate / 2000:g} kHz"])
    axes.grid(visible=False)
    drawn.savefig(picture, format="png", dpi=100, metadata={"Software": None})
    return _data_uri("image/png", picture)


def _data_uri(kind: str, content: io.BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
