"""What one branch's process does: clips → trained branch → embeddings → score tables → MLflow."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from orchestrator.plan import SCORE_CODE, Branch, code_version, detector_id
from orchestrator.tracking import TABLES, TrackedRun, Tracker, checksum_tag, flatten, joined_systems
from scoring.banks import score_table
from scoring.errors import InputError
from scoring.metrics import Metrics, has_labels, official_metrics
from scoring.table import file_sha256, write_table

EMBEDDINGS = "embeddings.npy"


@dataclass(frozen=True)
class Job:
    """What all branches of a run share; paths are absolute, since Tune changes the working directory.

    threads: CPU threads of a branch; sums over threads differ in their last bits, so it is part of the job
    device: `cpu` or `cuda`
    code: the driver's code version; a worker with another one would make other scores under the same id
    """

    data: Path
    cache: Path
    checkpoints: Path
    fingerprint: str
    tracker: Tracker
    threads: int
    device: str
    checkpoint_seconds: float
    code: str


def train_and_score(branch: Branch, job: Job, index: pa.Table, report: Callable[[int, float], None]) -> float | None:
    """Bring one branch's record to its score tables; the first table's Omega.

    Embeddings that are in the store and intact are scored as they are: a lost table or another detector costs no
    second training.
    """
    if code_version(*SCORE_CODE) != job.code:
        raise InputError("this node has another version of tutti than the driver; install the same on all nodes")
    started = time.monotonic()
    curve: list[tuple[int, float]] = []

    def record(step: int, loss: float) -> None:
        curve.append((step, loss))
        report(step, loss)

    identity = {"role": "branch", "branch_id": branch.branch_id}
    with job.tracker.run(branch.name, identity, _params(branch)) as run, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        embeddings = _stored_embeddings(run, folder)
        if embeddings is None:
            embeddings = _train(branch, job, index, record)
        omega, metrics = _write(branch, job, index, embeddings, folder)
        checksums = {checksum_tag(str(p.relative_to(folder))): file_sha256(p) for p in folder.rglob("*.*")}
        run.upload(folder)
        systems = joined_systems(run.before, branch.systems)
        tags = {"config_id": branch.config_id, "system": systems, "dataset": job.fingerprint}
        run.log({**metrics, "seconds": time.monotonic() - started}, tags={**tags, **checksums}, curve=curve)
    (job.checkpoints / f"{branch.branch_id}.pt").unlink(missing_ok=True)
    return omega


def _params(branch: Branch) -> dict[str, str]:
    """Parameters never change in MLflow, so a checkpoint that may be moved is named by its digest alone."""
    spec = branch.spec.model_dump()
    if branch.spec.backbone.sha256:
        spec["backbone"] = {"sha256": branch.spec.backbone.sha256}
    return flatten(spec)


def _stored_embeddings(run: TrackedRun, folder: Path) -> NDArray[np.float32] | None:
    path = run.tracker.intact(run.before, EMBEDDINGS, str(folder))
    return None if path is None else np.load(path)


def _train(branch: Branch, job: Job, index: pa.Table, record: Callable[[int, float], None]) -> NDArray[np.float32]:
    """Embeddings (clips, E) of a branch trained now, or trained on from its checkpoint."""
    # Loaded here, so that the driver, which imports this module, does not load torch.
    import torch

    from branches.audio import open_cache
    from branches.model import embed
    from branches.train import train, training_clips

    torch.set_num_threads(job.threads)
    audio = open_cache(job.data, index, job.cache)
    model = train(
        branch.spec,
        training_clips(audio, index),
        job.checkpoints / f"{branch.branch_id}.pt",
        record,
        job.checkpoint_seconds,
        job.device,
    )
    return embed(model, audio, branch.spec.channel)


def _write(
    branch: Branch, job: Job, index: pa.Table, embeddings: NDArray[np.float32], folder: Path
) -> tuple[float | None, dict[str, float]]:
    """Write embeddings, tables and a summary into `folder`; Omega of the first table, and all metrics."""
    np.save(folder / EMBEDDINGS, embeddings)
    (folder / TABLES).mkdir()
    metrics: dict[str, float] = {}
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
            "code": job.code,
        }
        table = score_table(index, embeddings, detector, metadata)
        write_table(table, folder / TABLES / f"{name}.parquet")
        found = official_metrics(table) if has_labels(table) else None  # hidden in an evaluation set
        summary[name] = found.as_dict() if found else None
        metrics |= flat_metrics(found, f"{name}.")
        omegas.append(found.omega if found else None)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1))
    return omegas[0], metrics


def flat_metrics(metrics: Metrics | None, prefix: str = "") -> dict[str, float]:
    """Metrics under the names that MLflow shows: `omega`, `fan.auc_source`, …; absent cells are left out."""
    if metrics is None:
        return {}
    cells = {"omega": metrics.omega}
    for machine, values in metrics.as_dict()["machines"].items():
        cells |= {f"{machine}.{cell}": value for cell, value in values.items()}
    # MLflow takes few characters in a name, and a machine is named by whoever made its folder.
    return {prefix + re.sub(r"[^\w./ -]", "_", name): value for name, value in cells.items() if value is not None}
