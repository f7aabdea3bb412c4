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

from branches.spec import BranchSpec, EmbeddingSpec, FrozenInput
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
from orchestrator.plan import Branch, embedding_name, versions
from orchestrator.training.generated import generated_clips
from orchestrator.training.job import Job, StageReport
from orchestrator.training.process import peak_memory
from scoring.banks import score_table
from scoring.errors import InputError
from scoring.metrics import Metrics, has_labels, official_metrics
from scoring.table import write_table

if TYPE_CHECKING:
    from branches.audio.cache import AudioCache

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
        try:
            omega = _train_and_score(branch, job, index, report)
        finally:
            storage.push_branch(branch.branch_id)
    return omega


def _checkpoint(branch: Branch, job: Job) -> Path:
    return job.checkpoints / f"{branch.branch_id}.pt"


def _train_and_score(branch: Branch, job: Job, index: pa.Table, report: StageReport) -> float | None:
    """Write one branch's folder of the ledger; the first table's Omega, unless the job ends at the embeddings.

    What is there already and intact is used: a lost table or another detector costs no second embedding, and clips
    that are new cost no second training. Weights are stored before anything is taken from them, and of a branch whose
    scoring fails all that could be made is kept.
    """
    started = time.monotonic()
    stored = job.out / BRANCHES / branch.branch_id
    before = record = read_record(stored)
    rows = _rows_of_stored(branch, record, index, stored)
    kept = [] if rows is None else [e for e in branch.embeddings if _stored(stored, record, embeddings_file(e))]
    missing = [e for e in branch.embeddings if e not in kept]
    if missing and not branch.spec.is_frozen and not _stored(stored, record, WEIGHTS):
        before, record = None, _train(branch, job, index, record, report)
    _checkpoint(branch, job).unlink(missing_ok=True)  # the weights are stored
    with new_folder(job.out, BRANCHES, branch.branch_id) as folder:
        tables = _copy_intact(stored, record, folder)
        for file in folder.glob("embeddings*.npy"):
            if rows is None:
                file.unlink()
            elif rows != list(range(len(rows))):  # clips were removed: the files are to be of those of the tables
                np.save(file, np.load(file)[rows])
        np.save(folder / CLIPS, index["digest"].to_numpy().astype(str))
        if missing:
            _embed(branch, job, index, missing, folder)
        scored = job.part != "embeddings"
        omega, metrics, failures = _write(branch, job, index, folder) if scored else (None, {}, {})
        written = {name: branch.tables[name] for name in branch.tables if scored and name not in failures}
        entry = branch_record(branch, job.fingerprint)
        update = {
            "tags": {**entry.tags, "system": joined_systems(record, branch.systems)},
            "metrics": {**_cost(job, started), **(before.metrics if before else {}), **metrics},
            "curve": record.curve if record else [],
            "files": checksums(folder),
            "embeddings": branch.embeddings_id,
            "tables": {**tables, **written},
        }
        write_record(folder, entry.model_copy(update=update))
    for error in failures.values():
        raise error
    return omega


def _train(branch: Branch, job: Job, index: pa.Table, record: Record | None, report: StageReport) -> Record:
    """Train a branch and store its weights beside what is intact of it; its record."""
    started = time.monotonic()
    curve: list[tuple[int, float]] = []

    def note(step: int, loss: float) -> None:
        curve.append((step, loss))
        report("branch", step, branch.spec.training.steps, loss)
        if job.stop_hopeless and (reason := hopeless(curve, branch.spec.training.steps)):
            raise Hopeless(reason)

    with new_folder(job.out, BRANCHES, branch.branch_id) as folder:
        tables = _copy_intact(job.out / BRANCHES / branch.branch_id, record, folder)
        try:
            _fit(branch.spec, job, index, note, report, folder / WEIGHTS, _checkpoint(branch, job))
        except Hopeless:
            _checkpoint(branch, job).unlink(missing_ok=True)
            raise
        entry = branch_record(branch, job.fingerprint)
        update = {
            "tags": {**entry.tags, "system": joined_systems(record, branch.systems)},
            "metrics": _cost(job, started),
            "curve": curve,
            "files": checksums(folder),
            "embeddings": record.embeddings if record else "",
            "tables": tables,
        }
        trained = entry.model_copy(update=update)
        write_record(folder, trained)
    return trained


def _cost(job: Job, started: float) -> dict[str, float]:
    return {
        "seconds": time.monotonic() - started,
        **job.held,
        "memory_gib": peak_memory(),
        **_gpu_memory(job),
    }


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


def is_embedded(branch: Branch, job: Job, index: pa.Table) -> bool:
    """Whether all of a branch's embeddings are in the ledger, so that nothing is left for a GPU."""
    stored = job.out / BRANCHES / branch.branch_id
    record = read_record(stored)
    there = _rows_of_stored(branch, record, index, stored) is not None
    return there and all(_stored(stored, record, embeddings_file(e)) for e in branch.embeddings)


def _stored(stored: Path, record: Record | None, file: str) -> bool:
    return record is not None and is_intact(stored, record, file)


def _rows_of_stored(branch: Branch, record: Record | None, index: pa.Table, stored: Path) -> list[int] | None:
    """Rows of the stored embeddings in the order of `index`; None if of another version or not of all its clips."""
    if record is None or record.embeddings != branch.embeddings_id or not _stored(stored, record, CLIPS):
        return None
    position = {digest: i for i, digest in enumerate(np.load(stored / CLIPS, allow_pickle=False).tolist())}
    rows = [position.get(digest, -1) for digest in index["digest"].to_pylist()]
    return None if -1 in rows else rows


def embeddings_file(embedding: EmbeddingSpec) -> str:
    """Where an embedding of all clips lies in a branch's folder."""
    return ".".join(filter(None, ["embeddings", embedding_name(embedding), "npy"]))


def _audio(spec: BranchSpec, job: Job, index: pa.Table) -> AudioCache:
    # Loaded here, so that the driver, which imports this module, does not load torch.
    import torch

    from branches.audio.cache import open_cache
    from branches.audio.channels import with_cancellation

    torch.set_num_threads(job.threads)
    audio = open_cache(job.data, index, job.decoded)
    return with_cancellation(audio, job.derived) if spec.channel == "cancel" else audio


def _frozen(wanted: FrozenInput, job: Job, index: pa.Table) -> NDArray[np.float32]:
    """An embedding of all clips by a frozen backbone, with all others that the run wants of it."""
    from branches.frozen import frozen_embeddings

    share = Storage(job.storage, job.out).share if job.storage else lambda path: None
    return frozen_embeddings(wanted, job.frozen, _audio(wanted[0], job, index), job.derived, job.device, share)


def _embed(branch: Branch, job: Job, index: pa.Table, embeddings: Sequence[EmbeddingSpec], folder: Path) -> None:
    """Write embeddings of all clips: one pass through the network, or what a frozen backbone gives all branches."""
    from branches.model import embed, load_branch, relocate_branch

    spec = branch.spec
    files = [folder / embeddings_file(e) for e in embeddings]
    if spec.is_frozen:
        for wanted, file in zip(spec.frozen_inputs(embeddings), files, strict=True):
            np.save(file, _frozen(wanted, job, index))
        return
    relocate_branch(folder / WEIGHTS, folder / WEIGHTS, spec, spec.backbone.path)  # which may lie elsewhere now
    embed(load_branch(folder / WEIGHTS, job.device), _audio(spec, job, index), spec.channel, embeddings, files)


def _fit(
    spec: BranchSpec,
    job: Job,
    index: pa.Table,
    note: Callable[[int, float], None],
    report: StageReport,
    weights: Path,
    checkpoint: Path,
) -> None:
    """Train, from the checkpoint on if there is one, and write the weights."""
    from branches.model import save_branch
    from branches.training.finetuning import train
    from branches.training.training_set import training_clips

    audio = _audio(spec, job, index)
    frozen = [_frozen(wanted, job, index) for wanted in spec.frozen_inputs(())]
    generated = generated_clips(spec, job, index, audio, report)
    clips = training_clips(audio, index, spec, frozen[0] if frozen else None, generated, _supplemental(spec, job))
    model = train(spec, clips, checkpoint, note, job.checkpoint_seconds, job.device, job.threads, job.compiled)
    save_branch(model, weights)


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
    branch: Branch, job: Job, index: pa.Table, folder: Path
) -> tuple[float | None, dict[str, float], dict[str, InputError]]:
    """Write tables and a summary into `folder`; Omega of the first table, all metrics, and why tables failed."""
    (folder / TABLES).mkdir(exist_ok=True)
    metrics: dict[str, float] = {}
    summary: dict[str, object] = {"branch": branch.name, "spec": branch.spec.model_dump()}
    omegas: list[float | None] = []
    failures: dict[str, InputError] = {}
    for scoring in branch.scorings:
        name = scoring.name
        metadata = {
            "branch_id": branch.branch_id,
            "config_id": branch.config_id,
            "spec": branch.spec.model_dump_json(),
            "dataset": job.fingerprint,
            "embedding": scoring.embedding.model_dump_json(),
            "detector": scoring.detector.model_dump_json(),
            "versions": json.dumps(job.versions),
        }
        embeddings = np.load(folder / embeddings_file(scoring.embedding), mmap_mode="r")
        try:
            table = score_table(index, embeddings, scoring.detector, metadata)
        except InputError as error:
            failures[name] = error
            continue
        write_table(table, folder / TABLES / f"{name}.parquet")
        official = official_metrics(table) if has_labels(table) else None  # hidden in an evaluation set
        summary[name] = official.as_dict() if official else None
        metrics |= flat_metrics(official, f"{name}.")
        omegas.append(official.omega if official else None)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    return omegas[0] if omegas else None, metrics, failures


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
