"""Training of the branches that are not finished, with Ray Tune: one trial a branch, and none stops the others."""

from __future__ import annotations

import io
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from branches.checkpoint_files import lay_out
from branches.data.dataset import Dataset
from cluster.capacity import gpus_of_a_branch, largest_memory, memory_share, require, slots
from orchestrator.cost import generator_petaflop, petaflop
from orchestrator.ledger.folders import add_systems, begin_anew, is_finished, record_failure
from orchestrator.ledger.storage import LAST, Storage
from orchestrator.plan import Branch, Plan, versions
from orchestrator.preflight import check_branches, check_lengths, notes_on
from orchestrator.training.generated import in_order, makers, nothing_rare, on_sets, set_folders
from orchestrator.training.job import Job, RunOptions, StageReport
from orchestrator.training.process import KILLED, MEMORY_FULL, MEMORY_REMEDY, packed, trial
from orchestrator.training.worker import branch_record, train_and_score
from scoring.errors import counted

log = logging.getLogger(__name__)

# Ray is imported inside the functions that need it: only after the session has set up what it reads.

# Workers and nodes that are lost count as failures, and a branch of many hours may lose several.
RETRIES = 3
SCALES = (1, 2, 4)  # of the memory that branches set aside, where so many tries have ended with a kill
# Branches that wait in Ray's own queue: an autoscaler sees them.
QUEUED = 8

# What a trial does, in a process of its own; see `train_and_score`.
Work = Callable[[Branch, Job, pa.Table, StageReport], float | None]


class BranchesFailed(RuntimeError):
    """Some branches could not be trained; the others are finished and recorded."""


def unfinished(branches: Sequence[Branch], out: Path) -> list[Branch]:
    """The branches whose score tables are not all in the ledger, intact."""
    return [b for b in branches if not is_finished(out, b.branch_id, b.tables)]


def train_missing(
    plan: Plan, dataset: Dataset, options: RunOptions, connect: Callable[[], None]
) -> BranchesFailed | None:
    """Train and score the branches that are not finished; what to say of those that failed.

    Raises InputError if the data, a checkpoint, the cluster or this installation cannot be used; before anything is
    trained.
    """
    storage = Storage(options.storage, options.out) if options.storage else None
    if storage is not None:
        for branch in plan.branches:
            storage.pull_branch(branch.branch_id)
            storage.push_branch(branch.branch_id)  # if it is only here
    for branch in plan.branches:
        add_systems(options.out, branch.branch_id, branch.systems, branch.names)
    missing = unfinished(plan.branches, options.out)
    finished = len(plan.branches) - len(missing)
    log.info("%d of %s finished", finished, counted(len(plan.branches), "branch"))
    if not missing:
        return None
    job = Job(
        **{**vars(options), "data": options.data.resolve(), "storage": storage and storage.uri},
        fingerprint=dataset.fingerprint,
        training=dataset.training_fingerprint(),
        noise=dataset.noise,
        versions=versions(),
        frozen=tuple(wanted for branch in plan.branches for wanted in branch.spec.frozen_inputs(branch.embeddings)),
    )
    if options.address != "local":
        connect()  # a cluster that cannot be used is refused before minutes go into decoding
    _prepare(job, dataset.index, missing)
    # Where there is such a folder, of a run on a cluster, branches look for checkpoints in it alone.
    if options.address != "local" or storage is not None or job.backbones.is_dir():
        lay_out({file for branch in missing for file in branch.spec.files}, job.backbones)
    if storage is not None:
        storage.push(job.cache.relative_to(job.out).as_posix())
    connect()
    job = replace(job, gpus_per_branch=gpus_of_a_branch(options.gpus_per_branch))
    require(job.resources)
    failures = launch(missing, job, dataset.index, finished=finished)
    if storage is not None:
        for branch in missing:
            storage.pull_branch(branch.branch_id)
        for folder in set_folders(missing, job):
            storage.pull(folder.relative_to(job.out).as_posix())
    for line in on_sets(missing, job):
        log.info(line)
    return _failure(unfinished(missing, options.out), failures, options.out, dataset.fingerprint)


def _prepare(job: Job, index: pa.Table, branches: Sequence[Branch]) -> None:
    """Check what branches need and decode what they hear, so that a damaged file is found now, and no GPU waits."""
    check_branches(branches, job.noise)
    from branches.audio.cache import open_cache  # loads torch, which a finished run does not need
    from branches.audio.channels import with_cancellation
    from branches.audio.formats import write_formats

    for branch in branches:
        begin_anew(job.out, branch.branch_id)
    audio = open_cache(job.data, index, job.decoded)
    check_lengths(index, audio, branches)
    write_formats(job.out, audio, index)
    specs = [s for b in branches for s in (b.spec, *(frozen for frozen, _ in b.spec.frozen_inputs(b.embeddings)))]
    if any(spec.channel == "cancel" for spec in specs):
        with_cancellation(audio, job.derived)
    if any((noise := b.spec.augmentation.noise) and noise.source == "supplemental" for b in branches):
        open_cache(job.data, job.noise, job.decoded_noise)
    used = {job.decoded, job.decoded_noise, job.derived, job.backbones}
    for old in {path for path in job.cache.iterdir() if path.is_dir()} - used:
        shutil.rmtree(old)
    job.checkpoints.mkdir(exist_ok=True)
    for half in job.checkpoints.glob("*.tmp"):
        half.unlink()
    for note in notes_on(index, audio, branches):
        log.warning(note)


def launch(
    branches: Sequence[Branch], job: Job, index: pa.Table, work: Work = train_and_score, finished: int = 0
) -> dict[str, str]:
    """Train and score branches on the connected Ray cluster; why they failed, by branch_id.

    Branches that are killed again and again are tried at the end with more memory, and so have fewer beside them.

    finished: branches of the run that were so before, for the display
    """
    # The longest first: a long branch that starts last leaves the other slots idle at the end.
    ordered = in_order(sorted(branches, key=lambda branch: petaflop(branch.spec, index.num_rows), reverse=True), job)
    failures: dict[str, str] = {}
    for scale in SCALES:
        if failures:
            killed = counted(len(ordered), "killed branch")
            log.info("retrying %s with more memory, which is most likely what was lacking", killed)
        before = (finished + sum(not reason for reason in failures.values()), finished + len(branches))
        failures |= dict.fromkeys((branch.branch_id for branch in ordered), "") | _launch(
            ordered, job, index, work, scale, before
        )
        # By the kernel or by Ray, and not with a node that was lost.
        ordered = [b for b in ordered if any(word in failures[b.branch_id] for word in (KILLED, MEMORY_FULL))]
        if not ordered:
            break
    return {branch_id: reason for branch_id, reason in failures.items() if reason}


def _launch(
    ordered: Sequence[Branch], job: Job, index: pa.Table, work: Work, scale: int, before: tuple[int, int]
) -> dict[str, str]:
    """One experiment of Tune, with so many times the memory; why branches failed, by branch_id.

    before: finished branches, and all of the run
    """
    from ray import tune

    from orchestrator.training.progress import shown

    by_id = {branch.branch_id: packed(branch) for branch in ordered}
    trainable = tune.with_parameters(trial, branches=by_id, shared=packed((work, job, index)))
    asked = _asked(job.resources, scale)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(max(QUEUED, slots(asked)))
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are told by name at the end
    with (
        # Tune's own files are not among the run's: a full disk there must not take Tune along.
        tempfile.TemporaryDirectory(prefix="tutti-tune-", ignore_cleanup_errors=True) as folder,
        shown(ordered, index.num_rows, asked, before, _generators(ordered, job, index)) as watcher,
        # Standard output belongs to the result; Tune says some things at any verbosity.
        redirect_stdout(io.StringIO()),
    ):
        tuner = tune.Tuner(
            tune.with_resources(trainable, tune.PlacementGroupFactory([asked])),
            param_space={"branch_id": tune.grid_search(list(by_id))},
            tune_config=tune.TuneConfig(reuse_actors=True),  # since each branch has a process of its own
            run_config=tune.RunConfig(
                name="tune",
                storage_path=folder,
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                callbacks=[watcher],
                verbose=0,
            ),
        )
        fitted = list(tuner.fit())  # in an order of Tune's own
    results = {r.config["branch_id"]: r for r in fitted if r.config}
    # A branch whose worker never began has no config in its result; all such have failed for want of a worker.
    results |= zip((b for b in by_id if b not in results), (r for r in fitted if not r.config), strict=False)
    failures = {branch_id: _with_remedy(str(r.error)) for branch_id, r in results.items() if r.error}
    failures |= {branch_id: r.metrics["failure"] for branch_id, r in results.items() if "failure" in r.metrics}
    if by_id.keys() - failures.keys() - {branch_id for branch_id, r in results.items() if "omega" in r.metrics}:
        raise KeyboardInterrupt  # Tune ends like this on a SIGUSR1
    return failures


def _with_remedy(error: str) -> str:
    """What Tune says of a branch, whose last line says what went wrong."""
    return f"{error}\n{MEMORY_REMEDY}" if MEMORY_FULL in error else error


def _generators(branches: Sequence[Branch], job: Job, index: pa.Table) -> dict[str, float]:
    """PFLOP of the generators that branches train before they train themselves, by branch_id."""
    by_id = {branch.branch_id: branch for branch in branches}
    costs = {}
    for branch_id, folder in makers(branches, job).items():
        generator = by_id[branch_id].spec.augmentation.generated
        if generator is not None and not (folder / LAST).exists() and not nothing_rare([by_id[branch_id]], index):
            costs[branch_id] = generator_petaflop(generator)
    return costs


def _asked(resources: Mapping[str, float], scale: int) -> dict[str, float]:
    """What a branch sets aside: CPUs and GPUs as asked for, and so many times its memory, or its share of a node."""
    others = {name: amount for name, amount in resources.items() if name != "memory"}
    memory = scale * (resources.get("memory") or memory_share(others))
    return {**others, "memory": float(int(min(memory, largest_memory(others))))}


def _failure(left: Sequence[Branch], failures: Mapping[str, str], out: Path, mark: str) -> BranchesFailed | None:
    """What to say of the branches that are not finished, with a record of each one's failure."""
    lines = []
    for branch in left:
        reason = failures.get(branch.branch_id, "not finished; its score tables are not in the ledger")
        path = record_failure(out, branch.branch_id, branch_record(branch, mark), reason)
        names = ", ".join(dict.fromkeys(use.name for use in branch.uses))
        of = f" (system {', '.join(branch.systems)})" if branch.systems else ""
        line = f"{names}{of}: {reason.strip().splitlines()[-1]} [{path}]"
        if branch.systems:
            lines.append(line)
        else:  # no reason to keep back what the branches gave
            log.warning("no baseline: %s", line)
    if not lines:
        return None
    return BranchesFailed(
        f"{counted(len(lines), 'branch')} failed, the others are kept; run again to retry, "
        "or add --fuse-incomplete to fuse the others\n" + "\n".join(lines)
    )
