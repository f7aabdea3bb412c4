"""What one branch's process does: clips → trained branch → embeddings → score tables → a folder of the ledger."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from filelock import FileLock
from numpy.typing import NDArray

from branches.spec import BranchSpec
from cluster.capacity import GIB
from orchestrator.ledger.folders import (
    BRANCHES,
    TABLES,
    Record,
    checksums,
    is_intact,
    joined_systems,
    new_folder,
    read_record,
    write_record,
)
from orchestrator.ledger.storage import Storage
from orchestrator.plan import Branch, detector_id, versions
from orchestrator.training.generated import generated_clips
from orchestrator.training.job import Job, StageReport
from orchestrator.training.process import peak_memory
from scoring.banks import score_table
from scoring.errors import InputError
from scoring.metrics import Metrics, has_labels, official_metrics
from scoring.table import write_table

if TYPE_CHECKING:
    from branches.audio.cache import AudioCache

EMBEDDINGS = "embeddings.npy"
CLIPS = "clips.npy"  # digests of the clips that the embeddings are of
WEIGHTS = "branch.pt"

LOOK_SECONDS = 20.0  # whether there is another checkpoint to store
HOPELESS_AFTER = 0.25  # of the steps
HOPELESS_POINTS = 5  # of the loss curve, which has 50


class Hopeless(Exception):
    """A branch was given up; its text says why."""


def train_and_score(branch: Branch, job: Job, index: pa.Table, report: StageReport) -> float | None:
    """Write one branch's folder of the ledger, and to the storage if there is one; the first table's Omega.

    Raises
    ------
    InputError
        If the branch would fail at every try.
    Hopeless
        If it learns nothing, and the job gives such branches up.
    """
    if versions() != job.versions:
        raise InputError("this node has another version of tutti than the driver; install the same on all nodes")
    if job.storage is None:
        return _train_and_score(branch, job, index, report)
    job.checkpoints.mkdir(parents=True, exist_ok=True)  # the driver has made that of its own node
    storage = Storage(job.storage, job.out)
    with FileLock(job.out / "pull.lock"):  # for the branches of this node
        storage.pull(job.cache.relative_to(job.out).as_posix())
    storage.pull_branch(branch.branch_id)
    with storage.following(_checkpoint(branch, job), min(job.checkpoint_seconds, LOOK_SECONDS)):
        omega = _train_and_score(branch, job, index, report)
        storage.push_branch(branch.branch_id)
    return omega


def _checkpoint(branch: Branch, job: Job) -> Path:
    return job.checkpoints / f"{branch.branch_id}.pt"


def _train_and_score(branch: Branch, job: Job, index: pa.Table, report: StageReport) -> float | None:
    """Write one branch's folder of the ledger; the first table's Omega.

    What is there already and intact is used: a lost table or another detector costs no second embedding, and clips
    that are new cost no second training.
    """
    started = time.monotonic()
    curve: list[tuple[int, float]] = []
    checkpoint = _checkpoint(branch, job)

    def record(step: int, loss: float) -> None:
        curve.append((step, loss))
        report("branch", step, branch.spec.training.steps, loss)
        if job.stop_hopeless and (reason := hopeless(curve, branch.spec.training.steps)):
            raise Hopeless(reason)

    stored = job.out / BRANCHES / branch.branch_id
    finished = read_record(stored)
    with new_folder(job.out, BRANCHES, branch.branch_id) as folder:
        tables = _copy_intact(stored, finished, folder)
        embeddings = _stored_embeddings(branch, finished, index, folder)
        if embeddings is None:
            if not (folder / WEIGHTS).exists():
                finished = None
            try:
                embeddings = _embed(branch, job, index, record, report, folder / WEIGHTS)
            except Hopeless:
                checkpoint.unlink(missing_ok=True)
                raise
            _save_embeddings(folder, embeddings, index)
        omega, metrics = _write(branch, job, index, embeddings, folder)
        entry = branch_record(branch, job.fingerprint)
        before = finished or entry
        update = {
            "tags": {**entry.tags, "system": joined_systems(finished, branch.systems)},
            "metrics": {
                **{"seconds": time.monotonic() - started, **job.held, "memory_gib": peak_memory()},
                **_gpu_memory(job),
                **before.metrics,
                **metrics,
            },
            "curve": before.curve or curve,
            "files": checksums(folder),
            "embeddings": branch.embeddings_id,
            "tables": {**tables, **branch.tables},
        }
        write_record(folder, entry.model_copy(update=update))
    checkpoint.unlink(missing_ok=True)
    return omega


def hopeless(curve: Sequence[tuple[int, float]], steps: int) -> str:
    """Why to give a training up, or nothing: after a quarter of its steps its loss is where it began.

    The branch's own loss on training clips alone decides. So no test clip has a say, the figures of the branches
    that are left are as honest as before, and the same branch is given up whatever else runs.

    curve: pairs of step and mean loss, from the first step on
    """
    step, _ = curve[-1]
    if step < HOPELESS_AFTER * steps or len(curve) < 1 + HOPELESS_POINTS:
        return ""
    lately = sum(loss for _, loss in curve[-HOPELESS_POINTS:]) / HOPELESS_POINTS
    if lately < curve[0][1]:
        return ""
    return f"given up at step {step} of {steps}: its loss is {lately:.3f}, and was {curve[0][1]:.3f} at the start"


def branch_record(branch: Branch, dataset: str) -> Record:
    """A branch's record without results.

    MLflow's parameters never change, so a checkpoint that may be moved is named by its digest alone.
    """
    return Record(
        name=branch.name,
        identity={"role": "branch", "branch_id": branch.branch_id},
        tags={"config_id": branch.config_id, "system": joined_systems(None, branch.systems), "dataset": dataset},
        params=flatten(_without_paths(branch.spec.model_dump())),
    )


def _without_paths(settings: Any) -> Any:
    """Settings without the path of a file that has a digest."""
    if isinstance(settings, dict):
        moved = {"path"} if settings.get("sha256") else set()
        return {key: _without_paths(value) for key, value in settings.items() if key not in moved}
    return [_without_paths(value) for value in settings] if isinstance(settings, (list, tuple)) else settings


def _copy_intact(stored: Path, record: Record | None, folder: Path) -> dict[str, str]:
    """Copy what is intact of a stored branch into `folder`; what identifies the score tables among it."""
    if record is None:
        return {}
    intact = {file for file in record.files if is_intact(stored, record, file)}
    for file in intact:
        (folder / file).parent.mkdir(exist_ok=True)
        shutil.copyfile(stored / file, folder / file)
    return {name: identity for name, identity in record.tables.items() if f"{TABLES}/{name}.parquet" in intact}


def _stored_embeddings(
    branch: Branch, record: Record | None, index: pa.Table, folder: Path
) -> NDArray[np.float32] | None:
    """The embeddings in `folder` in the order of `index`; None if lost, of another version or not of all its clips."""
    files = folder / EMBEDDINGS, folder / CLIPS
    if record is None or record.embeddings != branch.embeddings_id or not all(file.exists() for file in files):
        return None
    embeddings, digests = (np.load(file, allow_pickle=False) for file in files)
    position = {digest: i for i, digest in enumerate(digests.tolist())}
    rows = [position.get(digest, -1) for digest in index["digest"].to_pylist()]
    if -1 in rows:
        return None
    if rows != list(range(len(digests))):  # clips were removed: the files are to be of the same ones as the tables
        _save_embeddings(folder, embeddings[rows], index)
    return embeddings[rows]


def _save_embeddings(folder: Path, embeddings: NDArray[np.float32], index: pa.Table) -> None:
    np.save(folder / EMBEDDINGS, embeddings)
    np.save(folder / CLIPS, index["digest"].to_numpy().astype(str))


def _embed(
    branch: Branch,
    job: Job,
    index: pa.Table,
    record: Callable[[int, float], None],
    report: StageReport,
    weights: Path,
) -> NDArray[np.float32]:
    """Embeddings (clips, …) of a branch: by its `weights` if that file is there, else it is trained and writes them.

    Training goes on from its checkpoint; a frozen branch has no weights of its own.
    """
    # Loaded here, so that the driver, which imports this module, does not load torch.
    import torch

    from branches.audio.cache import open_cache
    from branches.audio.channels import with_cancellation
    from branches.frozen import frozen_embeddings, view_of
    from branches.model import embed, load_branch, relocate_branch, save_branch
    from branches.training.finetuning import train
    from branches.training.training_set import training_clips

    spec = branch.spec
    torch.set_num_threads(job.threads)
    audio = open_cache(job.data, index, job.decoded)
    if spec.channel == "cancel":
        audio = with_cancellation(audio, job.derived)
    if weights.exists():
        relocate_branch(weights, weights, spec, spec.backbone.path)  # which may lie elsewhere now
        return embed(load_branch(weights, job.device), audio, spec.channel)
    view, frozen = view_of(spec), None
    if view is not None:
        views = [v for v in map(view_of, job.specs) if v is not None]
        share = Storage(job.storage, job.out).share if job.storage else lambda path: None
        frozen = frozen_embeddings(view, views, audio, job.derived, job.device, share)
        if spec.is_frozen:
            return frozen
    generated = generated_clips(spec, job, index, audio, report)
    clips = training_clips(audio, index, spec, frozen, generated, _supplemental(spec, job))
    model = train(
        spec, clips, _checkpoint(branch, job), record, job.checkpoint_seconds, job.device, job.threads, job.compiled
    )
    save_branch(model, weights)
    return embed(model, audio, spec.channel)


def _gpu_memory(job: Job) -> dict[str, float]:
    """The most that this process has reserved on its GPU, as a metric; what CUDA itself takes is not in it."""
    if not job.gpus:
        return {}
    import torch

    return {"gpu_memory_gib": torch.cuda.max_memory_reserved() / GIB}


def _supplemental(spec: BranchSpec, job: Job) -> tuple[AudioCache, pa.Table] | None:
    """The supplemental noise clips, decoded, if the branch mixes them in."""
    from branches.audio.cache import open_cache

    if spec.augmentation.noise is None or spec.augmentation.noise.source != "supplemental":
        return None
    return open_cache(job.data, job.noise, job.decoded_noise), job.noise


def _write(
    branch: Branch, job: Job, index: pa.Table, embeddings: NDArray[np.float32], folder: Path
) -> tuple[float | None, dict[str, float]]:
    """Write tables and a summary into `folder`; Omega of the first table, and all metrics."""
    (folder / TABLES).mkdir(exist_ok=True)
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
            "versions": json.dumps(job.versions),
        }
        table = score_table(index, embeddings, detector, metadata)
        write_table(table, folder / TABLES / f"{name}.parquet")
        official = official_metrics(table) if has_labels(table) else None  # hidden in an evaluation set
        summary[name] = official.as_dict() if official else None
        metrics |= flat_metrics(official, f"{name}.")
        omegas.append(official.omega if official else None)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    return omegas[0], metrics


def flat_metrics(metrics: Metrics | None, prefix: str = "") -> dict[str, float]:
    """Metrics by name: `omega`, `fan.auc_source`, …; absent cells are left out."""
    if metrics is None:
        return {}
    cells = {"omega": metrics.omega}
    for machine, values in metrics.as_dict()["machines"].items():
        cells |= {f"{machine}.{cell}": value for cell, value in values.items()}
    return {prefix + name: value for name, value in cells.items() if value is not None}


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow parameters: {"objective": {"name": …}} → {"objective.name": …}."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return flat
