"""What one branch's process does: clips → trained branch → embeddings → score tables → MLflow."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa

from orchestrator.plan import SCORE_CODE, Branch, code_version, detector_id
from orchestrator.tracking import TABLES, TrackedRun, Tracker, flatten
from scoring.banks import score_table
from scoring.metrics import Metrics, has_labels, official_metrics
from scoring.table import write_table


@dataclass(frozen=True)
class Job:
    """What all branches of a run share; paths are absolute, since Tune changes the working directory.

    threads: CPU threads of a branch; sums over threads differ in their last bits, so it is part of the job
    """

    data: Path
    cache: Path
    checkpoints: Path
    fingerprint: str
    tracker: Tracker
    threads: int


def train_and_score(branch: Branch, job: Job, index: pa.Table, report: Callable[[int, float], None]) -> float | None:
    """Train one branch, score it with each of its detectors and record both; the first table's Omega."""
    # Loaded here, so that the driver, which imports this module, does not load torch.
    import torch

    from branches.audio import open_cache
    from branches.dataset import class_labels
    from branches.model import embed
    from branches.train import TrainingClips, train

    torch.set_num_threads(job.threads)
    started = time.monotonic()
    audio = open_cache(job.data, index, job.cache)
    rows = (index["split"].to_numpy() == "train").nonzero()[0]
    labels, names = class_labels(index.take(rows))
    curve: list[tuple[int, float]] = []

    def record(step: int, loss: float) -> None:
        curve.append((step, loss))
        report(step, loss)

    identity = {"role": "branch", "branch_id": branch.branch_id}
    with job.tracker.run(branch.name, identity, flatten(branch.spec.model_dump())) as run:
        checkpoint = job.checkpoints / f"{branch.branch_id}.pt"
        model = train(branch.spec, TrainingClips(audio, rows, labels, len(names)), checkpoint, record)
        trained = time.monotonic()
        embeddings = embed(model, audio, branch.spec.channel)
        with tempfile.TemporaryDirectory() as folder:
            omega, metrics, checksums = _score(branch, job, index, embeddings, Path(folder))
            run.upload(Path(folder))
        seconds = {"seconds.training": trained - started, "seconds.total": time.monotonic() - started}
        _record(run, branch, job, {**metrics, **seconds}, checksums, curve)
        checkpoint.unlink(missing_ok=True)
    return omega


def _score(
    branch: Branch, job: Job, index: pa.Table, embeddings: object, folder: Path
) -> tuple[float | None, dict[str, float], dict[str, str]]:
    """Write the tables and a summary into `folder`; Omega of the first, all metrics, and the checksums."""
    (folder / TABLES).mkdir()
    metrics: dict[str, float] = {}
    checksums: dict[str, str] = {}
    summary: dict[str, object] = {"branch": branch.name, "spec": branch.spec.model_dump()}
    omegas = []
    for detector in branch.detectors:
        name = detector_id(detector)
        metadata = {
            "branch_id": branch.branch_id,
            "config_id": branch.config_id,
            "spec": branch.spec.model_dump_json(),
            "dataset": job.fingerprint,
            "detector": detector.model_dump_json(),
            "version": version("tutti-asd"),
            "code": code_version(*SCORE_CODE),
        }
        table = score_table(index, embeddings, detector, metadata)  # type: ignore[arg-type]
        checksums[f"sha256.{name}"] = write_table(table, folder / TABLES / f"{name}.parquet")
        found = official_metrics(table) if has_labels(table) else None  # hidden in an evaluation set
        summary[name] = found.as_dict() if found else None
        metrics |= flat_metrics(found, f"{name}.")
        omegas.append(found.omega if found else None)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1))
    return omegas[0], metrics, checksums


def flat_metrics(metrics: Metrics | None, prefix: str = "") -> dict[str, float]:
    """Metrics under the names that MLflow shows: `omega`, `fan.auc_source`, …; absent cells are left out."""
    if metrics is None:
        return {}
    cells = {"omega": metrics.omega}
    for machine, values in metrics.as_dict()["machines"].items():
        cells |= {f"{machine}.{cell}": value for cell, value in values.items()}
    return {prefix + name: value for name, value in cells.items() if value is not None}


def _record(
    run: TrackedRun,
    branch: Branch,
    job: Job,
    metrics: dict[str, float],
    checksums: dict[str, str],
    curve: list[tuple[int, float]],
) -> None:
    tags = {
        "config_id": branch.config_id,
        "system": ",".join(branch.systems),
        "dataset": job.fingerprint,
        **checksums,
    }
    run.log(metrics=metrics, tags=tags, curve=curve)
