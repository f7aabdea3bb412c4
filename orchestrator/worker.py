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
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from branches.dataset import noise_index
from branches.spec import BranchSpec
from orchestrator.generation import generated_clips
from orchestrator.plan import SCORE_CODE, Branch, code_version, detector_id, identity
from orchestrator.tracking import TABLES, TrackedRun, Tracker, checksum_tag, flatten, joined_systems
from scoring.banks import score_table
from scoring.errors import InputError
from scoring.metrics import Metrics, has_labels, official_metrics
from scoring.table import file_sha256, write_table

if TYPE_CHECKING:
    from branches.audio import AudioCache

EMBEDDINGS = "embeddings.npy"
WEIGHTS = "branch.pt"


@dataclass(frozen=True)
class Job:
    """What all branches of a run share; paths are absolute, since Tune changes the working directory.

    threads: CPU threads of a branch; sums over threads differ in their last bits, so it is part of the job
    device: `cpu` or `cuda`
    code: the driver's code version; a worker with another one would make other scores under the same id
    specs: all branches of the run, since frozen embeddings are computed for all of them at once
    generated: folder of the sets of generated clips
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
    specs: tuple[BranchSpec, ...]
    generated: Path


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
            embeddings = _embed(branch, job, index, record, folder / WEIGHTS)
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
    return flatten(identity(branch.spec.model_dump()))


def _stored_embeddings(run: TrackedRun, folder: Path) -> NDArray[np.float32] | None:
    path = run.tracker.intact(run.before, EMBEDDINGS, str(folder))
    return None if path is None else np.load(path)


def _embed(
    branch: Branch, job: Job, index: pa.Table, record: Callable[[int, float], None], weights: Path
) -> NDArray[np.float32]:
    """Embeddings (clips, …) of a branch that is trained now, trained on from its checkpoint, or frozen.

    What training changed is written to `weights`.
    """
    # Loaded here, so that the driver, which imports this module, does not load torch.
    import torch

    from branches.audio import open_cache
    from branches.channels import with_cancellation
    from branches.frozen import frozen_embeddings, view_of
    from branches.model import embed, save_branch
    from branches.train import train
    from branches.training_set import training_clips

    spec = branch.spec
    torch.set_num_threads(job.threads)
    audio = open_cache(job.data, index, job.cache)
    if spec.channel == "cancel":
        audio = with_cancellation(audio, job.cache)
    view, frozen = view_of(spec), None
    if view is not None:
        views = [v for v in map(view_of, job.specs) if v is not None]
        frozen = frozen_embeddings(view, views, audio, job.cache, job.code, job.device)
        if spec.strategy.name == "frozen":
            return frozen
    generated = generated_clips(spec, job, index)
    clips = training_clips(audio, index, spec, frozen, generated, _supplemental(spec, job))
    checkpoint = job.checkpoints / f"{branch.branch_id}.pt"
    model = train(spec, clips, checkpoint, record, job.checkpoint_seconds, job.device)
    save_branch(model, weights)
    return embed(model, audio, spec.channel)


def _supplemental(spec: BranchSpec, job: Job) -> tuple[AudioCache, pa.Table] | None:
    """The supplemental noise clips, decoded, if the branch mixes them in."""
    from branches.audio import open_cache

    if spec.augmentation.noise is None or spec.augmentation.noise.source != "supplemental":
        return None
    noise = noise_index(job.data)
    return open_cache(job.data, noise, job.cache.with_name(f"{job.cache.name}-noise")), noise


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
