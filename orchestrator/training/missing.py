"""Training of the branches of a plan that are not finished, and what to say of those that did not make it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from branches.data.dataset import Dataset
from cluster.capacity import gpus_of_a_branch, require
from cluster.session import Cluster
from orchestrator.installation import check_installation
from orchestrator.ledger.folders import (
    BRANCHES,
    FAILURES,
    GIVEN_UP,
    add_systems,
    is_finished,
    read_record,
    record_reason,
    tidy,
)
from orchestrator.ledger.storage import Storage
from orchestrator.plan import Branch, Plan, versions
from orchestrator.preflight import check_lengths, check_machines, check_models, check_noise, notes_on
from orchestrator.run_options import RunOptions
from orchestrator.training.baseline import baseline_beside, has_baseline
from orchestrator.training.generated import on_sets, pull_sets
from orchestrator.training.job import Job
from orchestrator.training.worker import branch_record

if TYPE_CHECKING:
    from branches.audio.cache import AudioCache
    from orchestrator.training.launch import Outcome

log = logging.getLogger(__name__)


class BranchesFailed(RuntimeError):
    """Some branches could not be trained; the others are finished and recorded."""


class RunInterrupted(BranchesFailed):
    """The run was stopped from outside; what it had finished is kept."""


def unfinished(branches: Sequence[Branch], out: Path) -> list[Branch]:
    """The branches whose score tables are not all in the ledger, intact."""
    return [b for b in branches if not is_finished(out, b.branch_id, b.tables)]


def train_missing(plan: Plan, dataset: Dataset, options: RunOptions, cluster: Cluster) -> BranchesFailed | None:
    """Train and score the branches that are not finished; what to say of those that failed.

    With `stop_hopeless`, branches that were given up are not tried again, and their absence is no failure.
    """
    storage = Storage(options.storage, options.out.resolve()) if options.storage else None
    if storage is not None:
        _exchange(storage, plan.branches, options.out)
    for branch in plan.branches:
        add_systems(options.out, branch.branch_id, branch.systems)
    missing = unfinished(plan.branches, options.out)
    finished = len(plan.branches) - len(missing)
    log.info("%d of %d branch%s finished", finished, len(plan.branches), "es" * (len(plan.branches) != 1))
    if options.stop_hopeless:
        missing = [b for b in missing if read_record(options.out / GIVEN_UP / b.branch_id) is None]
    tidy(options.out, [branch.branch_id for branch in missing])
    mark = dataset.fingerprint
    if not missing and has_baseline(options.out, mark):
        return None
    job = _job(plan, dataset, options, storage)
    audio = _prepare(job, dataset.index, missing)
    with baseline_beside(job.out, audio, dataset.index, mark) as abandoned:
        if not missing:  # the run before was killed between its last branch and the baseline
            return None
        outcome = _train(missing, job, dataset.index, options, cluster, storage)
        for branch in missing:
            if reason := outcome.given_up.get(branch.branch_id):
                log.info("%s: %s", branch.name, reason)
                record_reason(options.out, GIVEN_UP, branch.branch_id, branch_record(branch, mark), reason)
        left = [b for b in unfinished(missing, options.out) if b.branch_id not in outcome.given_up]
        failure = _failure(left, outcome.failures, options.out, mark)
        if isinstance(failure, RunInterrupted):
            abandoned.set()
    return failure


def _exchange(storage: Storage, branches: Sequence[Branch], out: Path) -> None:
    """Fetch the finished branches that are stored, and store those that are only here."""
    stored = storage.branches()
    for branch in branches:
        if branch.branch_id in stored:
            storage.pull_branch(branch.branch_id)
        elif read_record(out / BRANCHES / branch.branch_id) is not None:
            storage.push_branch(branch.branch_id)


def _job(plan: Plan, dataset: Dataset, options: RunOptions, storage: Storage | None) -> Job:
    out, mark = options.out.resolve(), dataset.fingerprint
    return Job(
        data=options.data.resolve(),
        out=out,
        cache=out / "cache" / mark[:16],
        checkpoints=out / "checkpoints",
        fingerprint=mark,
        noise=dataset.noise,
        threads=options.cpus_per_branch,
        gpus=0.0,  # until the cluster has been asked
        memory=options.memory_per_branch,
        checkpoint_seconds=options.checkpoint_seconds,
        versions=versions(),
        frozen=tuple(i for branch in plan.branches for i in branch.spec.frozen_inputs(branch.embeddings)),
        compiled=options.compiled,
        stop_hopeless=options.stop_hopeless,
        storage=storage.uri if storage else None,
        training=dataset.training_fingerprint(),
    )


def _train(
    missing: Sequence[Branch],
    job: Job,
    index: pa.Table,
    options: RunOptions,
    cluster: Cluster,
    storage: Storage | None,
) -> Outcome:
    _tidy_checkpoints(job.checkpoints)
    if storage is not None:
        storage.push(job.cache.relative_to(job.out).as_posix())
    cluster.connect()
    job = replace(job, gpus=gpus_of_a_branch(options.gpus_per_branch))
    require(job.resources)
    from orchestrator.training.launch import launch  # imports ray, and that only after the session has set it up

    outcome = launch(missing, job, index)
    if storage is not None:
        for branch in missing:
            storage.pull_branch(branch.branch_id)
        pull_sets(missing, job, storage)
    for line in on_sets(missing, job):
        log.info(line)
    _tidy_checkpoints(job.checkpoints)
    return outcome


def _prepare(job: Job, index: pa.Table, branches: Sequence[Branch]) -> AudioCache:
    """Check what branches need and decode what they hear, so that a damaged file is found now, and no GPU waits."""
    from branches.audio.cache import open_cache  # loads torch, which a finished run does not need
    from branches.audio.channels import with_cancellation
    from branches.audio.formats import write_formats

    check_installation()
    check_models(branches)
    check_noise(job.noise, branches)
    check_machines(index, branches)
    audio = open_cache(job.data, index, job.decoded)
    check_lengths(index, audio, branches)
    write_formats(job.out, audio, index)
    specs = [s for b in branches for s in (b.spec, *(frozen for frozen, _ in b.spec.frozen_inputs(b.embeddings)))]
    if any(spec.channel == "cancel" for spec in specs):
        with_cancellation(audio, job.derived)
    if any((noise := b.spec.augmentation.noise) and noise.source == "supplemental" for b in branches):
        open_cache(job.data, job.noise, job.decoded_noise)
    for old in {path for path in job.cache.iterdir() if path.is_dir()} - {job.decoded, job.decoded_noise, job.derived}:
        shutil.rmtree(old)
    for note in notes_on(index, audio, branches):
        log.warning(note)
    return audio


def _tidy_checkpoints(folder: Path) -> None:
    """Remove half-written checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    for half in folder.glob("*.tmp"):
        half.unlink()


def _failure(left: Sequence[Branch], failures: Mapping[str, str], out: Path, mark: str) -> BranchesFailed | None:
    """What to say of the branches that are not finished, with a record of each one's failure."""
    if not left:
        return None
    if not failures:
        return RunInterrupted(f"interrupted with {len(left)} branches unfinished; run again to continue")
    lines = []
    for branch in left:
        reason = failures.get(branch.branch_id, "not finished; its score tables are not in the ledger")
        path = record_reason(out, FAILURES, branch.branch_id, branch_record(branch, mark), reason)
        lines.append(f"{branch.name} (system {', '.join(branch.systems)}): {reason.strip().splitlines()[-1]} [{path}]")
    return BranchesFailed(
        f"{len(left)} {'branch' if len(left) == 1 else 'branches'} failed, the others are kept; run again to retry, "
        "or add --fuse-incomplete to fuse the others\n" + "\n".join(lines)
    )
