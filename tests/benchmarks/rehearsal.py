"""A run of the challenge's size, or of a share of it, on generated sounds: where time, memory and disk go.

    python -m tests.benchmarks.rehearsal /tmp/rehearsal --share 1     # 14 400 clips, 9 GB of sounds, 14 GB of cache

Twelve machines with two channels and clips of 10 s; five have no labels, as in the evaluation set. The folder is
removed at the end. Each stage is measured by itself, in the order of a run, in seconds and in seconds of CPU, which
count on a busy machine; the run itself then finds the decoded clips there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile
import torch
import yaml

from branches.audio.cache import open_cache
from branches.audio.channels import with_cancellation
from branches.data.dataset import Dataset
from branches.frozen import frozen_embeddings
from branches.spec import EMBEDDING_VERSION
from orchestrator.system import load_system
from scoring.banks import score_table
from tests.commands import TUTTI

GIB = 1 << 30
RATE, SECONDS = 16_000, 10
MACHINES = 12
HIDDEN = 5  # machines without labels
SYSTEM = {
    "name": "rehearsal",
    "branch": {"channel": "cancel", "pooling": "band_mean", "training": {"steps": 30, "batch_size": 8}},
    "subsystems": {
        "frozen": {
            "bands": {"branch": {"strategy": "frozen", "pooling": "relative_deviation"}, "detector": "band_knn"},
            "mean": {"branch": {"strategy": "frozen", "pooling": "mean"}, "detector": "mahalanobis"},
        },
        "trained": {
            "lora": {"branch": {"strategy": {"name": "lora", "rank": 8}}, "detector": "band_knn"},
            "head": {"branch": {"strategy": "head"}, "detector": "knn", "seeds": [0, 1]},
        },
    },
}


def write_sounds(root: Path, share: float) -> None:
    """Coloured noise with a tone for each machine and speed; both microphones hear an ambience, too."""
    cells = [("train", "source", "normal", 990), ("train", "target", "normal", 10)]
    cells += [("test", d, c, 50) for d in ("source", "target") for c in ("normal", "anomaly")]
    time_axis = np.arange(RATE * SECONDS) / RATE
    for m in range(MACHINES):
        rng = np.random.default_rng(m)
        written = 0
        for split, domain, condition, full in cells:
            (root / f"machine{m:02}" / split).mkdir(parents=True, exist_ok=True)
            for i in range(max(2, round(full * share))):
                speed = int(rng.integers(3))
                tone = np.sin(2 * np.pi * (200 + 40 * m + 15 * speed) * time_axis, dtype=np.float32)
                noise = rng.standard_normal((len(tone), 2), np.float32)
                near = (1.0 + (condition == "anomaly")) * tone + 0.3 * noise[:, 0] + 0.5 * noise[:, 1]
                name = f"section_00_{domain}_{split}_{condition}_{i:04}_spd_{speed}.wav"
                if split == "test" and m >= MACHINES - HIDDEN:
                    name = f"section_00_{written:04}.wav"
                written += split == "test"
                clip = 0.05 * np.stack([near, 0.2 * tone + noise[:, 1]], axis=1)
                soundfile.write(root / f"machine{m:02}" / split / name, clip, RATE, subtype="PCM_16")


def cpu_seconds() -> float:
    """Of this process and of those it has waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def observed(command: list[str]) -> tuple[dict[str, float], float]:
    """Runs a command, printing what it says with the time when it says it.

    Returns the most memory of its process, of the largest one below it, and of all together, GiB; and seconds of CPU of
    all of them, since Ray's workers are not waited for by anybody.
    """
    peaks = {"driver": 0.0, "largest worker": 0.0, "all": 0.0}
    used: dict[int, float] = {}
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8")
    done = threading.Event()

    def watch() -> None:
        driver = psutil.Process(process.pid)
        while not done.wait(0.5):
            sizes = []
            for one in [driver, *driver.children(recursive=True)]:
                try:
                    sizes.append((one.memory_info().rss - one.memory_info().shared) / GIB)
                    used[one.pid] = sum(one.cpu_times()[:2])
                except psutil.NoSuchProcess:
                    sizes.append(0.0)
            now = {"driver": sizes[0], "largest worker": max(sizes[1:], default=0.0), "all": sum(sizes)}
            for name, size in now.items():
                peaks[name] = max(peaks[name], size)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    assert process.stderr is not None
    for line in process.stderr:
        print(f"  {time.monotonic() - started:7.1f} s  {line.rstrip()}", flush=True)
    code = process.wait()
    done.set()
    watcher.join()
    assert code == 0, command
    return peaks, sum(used.values())


def gib(path: Path) -> float:
    """What a file or folder takes on disk."""
    return sum(f.stat().st_size for f in [path, *path.rglob("*")] if f.is_file()) / GIB


def rehearse(folder: Path, share: float, backbone: str, cpus: int) -> None:
    """Print a line for each stage."""
    data, out = folder / "data", folder / "out"

    def stage(name: str, work: Callable[[], Any]) -> Any:
        started, before = time.monotonic(), cpu_seconds()
        result = work()
        print(f"{name:<44}{time.monotonic() - started:8.1f} s {cpu_seconds() - before:8.1f} s CPU", flush=True)
        return result

    stage("sounds written", lambda: write_sounds(data, share))
    print(f"{gib(data):.1f} GiB of sounds")
    dataset: Dataset = stage("index and digests of all files", lambda: Dataset.read(data))
    print(f"{dataset.index.num_rows} clips")
    cache = out / "cache" / dataset.fingerprint[:16]
    derived = cache / f"derived-{EMBEDDING_VERSION}"
    audio = stage("decoding", lambda: open_cache(data, dataset.index, cache / f"clips-{EMBEDDING_VERSION}"))
    audio = stage("far-microphone cancellation", lambda: with_cancellation(audio, derived))
    system = json.loads(json.dumps(SYSTEM).replace('"strategy"', f'"backbone": "{backbone}", "strategy"'))
    written = folder / "rehearsal.yaml"
    written.write_text(yaml.safe_dump(system), encoding="utf-8")
    frozen = load_system(str(written), backbone).subsystems["frozen"].values()
    views = [(c.branch, c.embedding) for c in frozen]
    torch.set_num_threads(cpus)
    stage("frozen embeddings, one pass", lambda: frozen_embeddings(views[0], views, audio, derived, "cpu"))
    for view, configuration in zip(views, frozen, strict=True):
        embeddings = frozen_embeddings(view, views, audio, derived, "cpu")
        detector = configuration.detector
        stage(
            f"scoring by {detector.name}, {embeddings.shape[1:]}",
            lambda e=embeddings, d=detector: score_table(dataset.index, e, d, {}),
        )
    run = [TUTTI, "run", str(written), "--data", str(data), "--out", str(out)]
    peaks, cpu = stage("tutti run, decoded as above", lambda: observed(run))
    print(f"{cpu:.0f} s of CPU, Ray's processes and workers included")
    print("peak memory without mapped files: " + ", ".join(f"{name} {size:.2f} GiB" for name, size in peaks.items()))
    for record in sorted(out.glob("branches/*/record.json")):
        content = json.loads(record.read_text("utf-8"))
        print(f"  {content['name']:<42}{content['metrics']['seconds']:8.1f} s")
    stage("tutti fuse", lambda: _tutti("fuse", written, "--tables", out, "--out", folder / "fused"))
    stage("tutti report", lambda: _tutti("report", out))
    again = ["run", written, "--data", data, "--out", out]
    stage("tutti run again, nothing to do", lambda: _tutti(*again))
    stage("the same, to an empty MLflow store", lambda: _tutti(*again, "--tracking-uri", f"sqlite:///{folder}/new.db"))
    for name in ("cache", "branches", "systems", "submission", "mlflow.db", "mlartifacts", "report.html"):
        print(f"  {name:<42}{gib(out / name) * 1024:8.1f} MiB")


def _tutti(*arguments: object) -> None:
    subprocess.run([TUTTI, *map(str, arguments)], check=True, capture_output=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--share", type=float, default=1.0, help="of the challenge's clips")
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--cpus", type=int, default=1, help="threads of the frozen pass")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True)
    try:
        rehearse(chosen.folder, chosen.share, chosen.backbone, chosen.cpus)
    finally:
        shutil.rmtree(chosen.folder)
