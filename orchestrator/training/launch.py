"""Train branches with Ray Tune: one trial per branch, one branch's failure does not stop the others."""

from __future__ import annotations

import io
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from ray import tune

from cluster.capacity import largest_memory, memory_share, slots
from orchestrator.cost import petaflop
from orchestrator.plan import Branch
from orchestrator.training.generated import in_order
from orchestrator.training.job import Job, StageReport
from orchestrator.training.process import ProcessKilled, packed, trial
from orchestrator.training.progress import shown
from orchestrator.training.queue import BranchQueue, begin_with
from orchestrator.training.resources import Demand, Measure
from orchestrator.training.worker import is_embedded, train_and_score

log = logging.getLogger(__name__)

# Workers and nodes that are lost count as failures, and a branch of many hours may lose several.
RETRIES = 3
SCALES = (1, 2, 4)  # of the memory that branches set aside, where so many tries have ended with a kill
# Branches that wait in Ray's own queue: they have asked for their memory already, but an autoscaler sees them.
QUEUED = 8

# What a trial does, in a process of its own; see `train_and_score`.
Work = Callable[[Branch, Job, pa.Table, StageReport], float | None]


@dataclass(frozen=True)
class Outcome:
    """What became of the branches that were not finished, by branch_id: why they failed, or were given up."""

    failures: dict[str, str]
    given_up: dict[str, str]


def launch(branches: Sequence[Branch], job: Job, index: pa.Table, work: Work = train_and_score) -> Outcome:
    """Train and score the branches on the connected Ray cluster; those that are killed again with more memory."""
    # The longest first: a long branch that starts last leaves the other slots idle at the end.
    ordered = in_order(sorted(branches, key=lambda branch: petaflop(branch.spec, index.num_rows), reverse=True))
    outcome = Outcome({}, {})
    for scale in SCALES:
        latest = _launch(ordered, job, index, work, scale)
        outcome = Outcome({**outcome.failures, **latest.failures}, {**outcome.given_up, **latest.given_up})
        ordered = [branch for branch in ordered if _was_killed(outcome.failures.get(branch.branch_id, ""))]
        if not ordered or scale == SCALES[-1]:
            return outcome
        log.info("%d branches were killed, most likely for lack of memory; retrying with more", len(ordered))
        for branch in ordered:
            del outcome.failures[branch.branch_id]
    return outcome


def _was_killed(failure: str) -> bool:
    """Whether a process was killed from outside, by the kernel or by Ray, and not the node lost with it."""
    return ProcessKilled.__name__ in failure or "ray.exceptions.OutOfMemoryError" in failure


def _launch(ordered: Sequence[Branch], job: Job, index: pa.Table, work: Work, scale: int) -> Outcome:
    """One experiment of Tune, with so many times the memory."""
    by_id = {branch.branch_id: packed(branch) for branch in ordered}
    trainable = tune.with_parameters(trial, branches=by_id, shared=packed((work, job, index)))
    embedded = {b.branch_id for b in ordered if job.gpus and is_embedded(b, job, index)}
    demand = Demand(
        job.resources,
        memory_share(job.resources) / (2 if job.gpus else 1),  # beside each branch on a GPU another one is scored
        largest_memory({name: value for name, value in job.resources.items() if name != "memory"}),
        job.out / "memory.json",
        {branch.branch_id: branch.config_id for branch in ordered},
        scale,
    )
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(max(QUEUED, slots(job.resources)))
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are told by name at the end
    with (
        # Tune's own files are not among the run's: a full disk there must not take Tune along.
        tempfile.TemporaryDirectory(prefix="tutti-tune-", ignore_cleanup_errors=True) as folder,
        shown(ordered, index.num_rows, job.resources) as watcher,
        # Standard output belongs to the result; Tune says some things at any verbosity.
        redirect_stdout(io.StringIO()),
    ):
        tuner = tune.Tuner(
            tune.with_resources(trainable, demand),
            tune_config=tune.TuneConfig(
                search_alg=BranchQueue(begin_with(list(by_id), embedded, job.gpus)),
                num_samples=2 * len(by_id),  # at most
                trial_name_creator=_name,
                trial_dirname_creator=_name,
                reuse_actors=True,  # since each branch has a process of its own
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=folder,
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                callbacks=[watcher, Measure(demand)],
                verbose=0,
            ),
        )
        results = tuner.fit()
    failures = {r.config["branch_id"]: str(r.error) for r in results if r.error is not None}
    return Outcome({**failures, **_last(results, "failure")}, _last(results, "given_up"))


def _name(made: Any) -> str:
    return f"{made.config['branch_id']}-{made.config['part']}"


def _last(results: tune.ResultGrid, key: str) -> dict[str, str]:
    return {r.config["branch_id"]: r.metrics[key] for r in results if r.metrics and key in r.metrics}
