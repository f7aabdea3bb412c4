"""What one branch's process does: clips → trained branch → embeddings → score tables, committed by its record."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from branches.spec import BranchSpec, EmbeddingSpec, FrozenInput
from orchestrator.ledger.folders import (
    BRANCHES,
    TABLES,
    Record,
    is_intact,
    joined_names,
    joined_systems,
    read_record,
    write_record,
)
from orchestrator.ledger.storage import Storage
from orchestrator.plan import Branch, Scoring, embedding_name, versions
from orchestrator.training.generated import generated_clips
from orchestrator.training.job import Job, StageReport
from scoring.atomic import link_or_copy
from scoring.banks import score_table
from scoring.errors import InputError
from scoring.locks import locked
from scoring.metrics import Metrics, has_labels, official_metrics
from scoring.table import file_sha256, write_table

if TYPE_CHECKING:
    from branches.audio.cache import AudioCache

# Torch is loaded inside the functions that need it: the driver imports this module, too.

WEIGHTS = "branch.pt"
LOOK_SECONDS = 20.0  # whether there is another checkpoint to store


def train_and_score(branch: Branch, job: Job, index: pa.Table, report: StageReport) -> float | None:
    """Bring a branch to its score tables in the ledger; Omega of the first one, None without labels.

    What is there and intact is used: another detector costs no embedding, and clips that are new no training. Weights
    are committed before anything is taken from them, and of a branch whose scoring fails all that could be made.

    Raises InputError if the branch would fail at every try.
    """
    if versions() != job.versions:
        raise InputError("this node has another version of tutti than the driver; install the same on all nodes")
    started = time.monotonic()
    folder = job.out / BRANCHES / branch.branch_id
    checkpoint = job.checkpoints / f"{branch.branch_id}.pt"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with _exchanged(branch, job, checkpoint):
        if job.backbones.is_dir():
            os.environ["TUTTI_CACHE"] = str(job.backbones)  # this process is the branch's alone
        before = read_record(folder)
        record = _renewed(before, branch, job)
        missing = [e for e in branch.embeddings if not _is_stored(folder, record, branch, e)]
        if missing and not branch.spec.is_frozen and not is_intact(folder, record, WEIGHTS):
            record = _train(branch.spec, job, index, folder, record, report, checkpoint)
        checkpoint.unlink(missing_ok=True)  # the weights are committed
        _forget_damaged([folder / embeddings_file(e) for e in missing if embeddings_file(e) in record.files], job)
        _embed(branch.spec, job, index, missing, folder)
        omega, record, failures = _score(branch, job, index, folder, record)
        embedded = {embeddings_file(e): file_sha256(folder / embeddings_file(e)) for e in missing}
        update = {
            "metrics": {**record.metrics, **(_cost(job, started) if before is None else {})},
            "files": record.files | embedded,
            "embeddings": branch.embeddings_id,
        }
        write_record(folder, record.model_copy(update=update))
    for error in failures:
        raise error
    return omega


@contextmanager
def _exchanged(branch: Branch, job: Job, checkpoint: Path) -> Iterator[None]:
    """Where nodes share no file system: fetch what the branch needs before the block, and store what it has made."""
    if job.storage is None:
        yield
        return
    storage = Storage(job.storage, job.out)
    with locked(job.out / "pull.lock"):  # for the branches of this node
        storage.pull(job.cache.relative_to(job.out).as_posix())
    storage.pull_branch(branch.branch_id, checked=True)
    with storage.following(checkpoint, min(job.checkpoint_seconds, LOOK_SECONDS)):
        try:
            yield
        finally:
            storage.push_branch(branch.branch_id)


def branch_record(branch: Branch, dataset: str) -> Record:
    """A branch's record without results.

    MLflow's parameters never change, so a checkpoint that may be moved is named by its digest alone.
    """
    return Record(
        name=branch.name,
        identity={"role": "branch", "branch_id": branch.branch_id},
        tags={
            "config_id": branch.config_id,
            "system": joined_systems(None, branch.systems),
            "dataset": dataset,
            "detector": ", ".join(dict.fromkeys(scoring.detector.name for scoring in branch.scorings)),
        },
        params=flatten(_without_paths(branch.spec.model_dump())),
        names=branch.names,
    )


def _renewed(record: Record | None, branch: Branch, job: Job) -> Record:
    """The record as the plan has the branch, whose embeddings of other clips or another version do not count."""
    fresh = branch_record(branch, job.fingerprint)
    if record is None:
        return fresh
    stale = () if record.embeddings == branch.embeddings_id else ("embeddings",)
    update = {
        "name": fresh.name,
        "tags": {**fresh.tags, "system": joined_systems(record, branch.systems)},
        "params": fresh.params,
        "names": joined_names(record, fresh.names),
        "files": {file: sha256 for file, sha256 in record.files.items() if not file.startswith(stale)},
    }
    return record.model_copy(update=update)


def _without_paths(settings: Any) -> Any:
    """Settings without the path of a file that has a digest."""
    if isinstance(settings, dict):
        moved = {"path"} if settings.get("sha256") else set()
        return {key: _without_paths(value) for key, value in settings.items() if key not in moved}
    return [_without_paths(value) for value in settings] if isinstance(settings, (list, tuple)) else settings


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow parameters: {"objective": {"name": …}} → {"objective.name": …}."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return flat


def embeddings_file(embedding: EmbeddingSpec) -> str:
    """Where an embedding of all clips lies in a branch's folder."""
    return ".".join(filter(None, ["embeddings", embedding_name(embedding), "npy"]))


def _is_stored(folder: Path, record: Record, branch: Branch, embedding: EmbeddingSpec) -> bool:
    """Whether an embedding of all present clips, and of no others, is there."""
    return record.embeddings == branch.embeddings_id and is_intact(folder, record, embeddings_file(embedding))


def _train(
    spec: BranchSpec,
    job: Job,
    index: pa.Table,
    folder: Path,
    record: Record,
    report: StageReport,
    checkpoint: Path,
) -> Record:
    """Train, from the checkpoint on if there is one, and commit the weights; the branch's record."""
    from branches.model import save_branch
    from branches.training.finetuning import train
    from branches.training.training_set import training_clips

    started = time.monotonic()
    curve: dict[int, float] = {}  # by step, as a training that runs out of memory begins anew

    def note(step: int, loss: float) -> None:
        curve[step] = loss
        report("branch", step, spec.training.steps, loss)

    audio = _audio(spec, job, index)
    frozen = [_frozen(wanted, job, index) for wanted in spec.frozen_inputs(())]
    generated = generated_clips(spec, job, index, audio, report)
    clips = training_clips(audio, index, spec, frozen[0] if frozen else None, generated, _supplemental(spec, job))
    model = train(spec, clips, checkpoint, note, job.checkpoint_seconds, job.device, job.cpus_per_branch, job.compiled)
    folder.mkdir(parents=True, exist_ok=True)
    save_branch(model, folder / WEIGHTS)
    trained = {"metrics": _cost(job, started), "curve": list(curve.items())}
    files = {**record.files, WEIGHTS: file_sha256(folder / WEIGHTS)}
    record = record.model_copy(update={**trained, "files": files})
    write_record(folder, record)
    return record


def _cost(job: Job, started: float) -> dict[str, float]:
    """What the branch's time cost, as metrics; of a GPU's memory the most that this process has reserved."""
    cost = {
        "seconds": time.monotonic() - started,
        "cpus": float(job.cpus_per_branch),
        "gpus": float(job.gpus_per_branch or 0),
    }
    if job.gpus_per_branch:
        import torch

        cost["gpu_memory_gib"] = torch.cuda.max_memory_reserved() / 2**30
    return cost


def _audio(spec: BranchSpec, job: Job, index: pa.Table) -> AudioCache:
    """The decoded clips, with the cancelled channel if the branch hears it."""
    import torch

    from branches.audio.cache import open_cache
    from branches.audio.channels import with_cancellation

    torch.set_num_threads(job.cpus_per_branch)
    audio = open_cache(job.data, index, job.decoded)
    return with_cancellation(audio, job.derived) if spec.channel == "cancel" else audio


def _supplemental(spec: BranchSpec, job: Job) -> tuple[AudioCache, pa.Table] | None:
    """The supplemental noise clips, decoded, if the branch mixes them in."""
    from branches.audio.cache import open_cache

    if spec.augmentation.noise is None or spec.augmentation.noise.source != "supplemental":
        return None
    return open_cache(job.data, job.noise, job.decoded_noise), job.noise


def _frozen(wanted: FrozenInput, job: Job, index: pa.Table) -> np.memmap[Any, np.dtype[np.float32]]:
    """An embedding of all clips by a frozen backbone, with all others that the run wants of it."""
    from branches.frozen import frozen_embeddings

    share = Storage(job.storage, job.out).share if job.storage else lambda path: None
    return frozen_embeddings(wanted, job.frozen, _audio(wanted[0], job, index), job.derived, job.device, share)


def _embed(spec: BranchSpec, job: Job, index: pa.Table, embeddings: Sequence[EmbeddingSpec], folder: Path) -> None:
    """Write embeddings of all clips: one pass through the network, or what a frozen backbone gives all branches."""
    from branches.model import embed, load_branch

    if not embeddings:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as name:
        files = [Path(name) / embeddings_file(embedding) for embedding in embeddings]
        if spec.is_frozen:
            for wanted, file in zip(spec.frozen_inputs(embeddings), files, strict=True):
                link_or_copy(Path(str(_frozen(wanted, job, index).filename)), file)
        else:
            model = load_branch(folder / WEIGHTS, spec.backbone.path, job.device)
            embed(model, _audio(spec, job, index), spec.channel, embeddings, files)
        for file in files:
            file.replace(folder / file.name)


def _forget_damaged(files: Sequence[Path], job: Job) -> None:
    """Remove damaged embeddings of a frozen backbone from the run's cache too, where they are the same file."""
    for file in filter(Path.exists, files):
        for cached in [path for path in job.derived.glob("*.npy") if path.samefile(file)]:
            cached.unlink()


def _score(
    branch: Branch, job: Job, index: pa.Table, folder: Path, record: Record
) -> tuple[float | None, Record, list[InputError]]:
    """Write score tables; Omega of the first one, the record with them, and why tables failed."""
    (folder / TABLES).mkdir(exist_ok=True)
    omegas: list[float | None] = []
    tables, files, metrics = dict(record.tables), dict(record.files), dict(record.metrics)
    failures: list[InputError] = []
    for scoring in branch.scorings:
        name, file = scoring.name, f"{TABLES}/{scoring.name}.parquet"
        embeddings = np.load(folder / embeddings_file(scoring.embedding), mmap_mode="r")
        try:
            table = score_table(index, embeddings, scoring.detector, _metadata(branch, scoring, job))
        except InputError as error:
            failures.append(error)
            continue
        files[file], tables[name] = write_table(table, folder / file), branch.tables[name]
        official = official_metrics(table) if has_labels(table) else None  # hidden in an evaluation set
        omegas.append(official.omega if official else None)
        metrics = {key: value for key, value in metrics.items() if not key.startswith(f"{name}.")}
        metrics |= flat_metrics(official, f"{name}.")
    scored = record.model_copy(update={"tables": tables, "files": files, "metrics": metrics})
    return omegas[0] if omegas else None, scored, failures


def _metadata(branch: Branch, scoring: Scoring, job: Job) -> dict[str, str]:
    """What stands in a score table's schema."""
    return {
        "branch_id": branch.branch_id,
        "config_id": branch.config_id,
        "spec": branch.spec.model_dump_json(),
        "dataset": job.fingerprint,
        "embedding": scoring.embedding.model_dump_json(),
        "detector": scoring.detector.model_dump_json(),
        "versions": json.dumps(job.versions),
    }


def flat_metrics(metrics: Metrics | None, prefix: str = "") -> dict[str, float]:
    """Metrics by name: `omega`, `fan.auc_source`, …; absent cells are left out."""
    if metrics is None:
        return {}
    cells = {"omega": metrics.omega}
    for machine, values in metrics.as_dict()["machines"].items():
        cells |= {f"{machine}.{cell}": value for cell, value in values.items()}
    return {prefix + name: value for name, value in cells.items() if value is not None}
