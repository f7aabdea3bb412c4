"""One run: plan → launch → fuse → report and submission. Running it again continues.

out/branches/, systems/, …      the ledger: score tables, weights and results, see orchestrator/ledger/folders.py
out/failures/                   why branches failed, until they are tried again
out/mlflow.db, mlartifacts/     the default MLflow store, which shows what is in the ledger
out/submission/<name>/          the challenge's CSV files
out/report.html                 what a person looks at
out/cache/, checkpoints/        digests of clips, decoded audio, frozen embeddings; checkpoints of unfinished branches
out/generated/<id>/             generated clips of rare operating states, and how they were judged
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from typing import Any

from branches.data.dataset import Dataset
from cluster.session import check_address, session
from fusion.on_ray import run_on_ray
from fusion.search import Runner
from orchestrator.fuse.result import fused_system
from orchestrator.ledger.folders import DIGESTS, FAILURES, FUSED, REPORT, SYSTEMS, Status, only_driver
from orchestrator.ledger.storage import Storage, every, stored_run
from orchestrator.plan import Plan, make_plan, table_names, without
from orchestrator.preflight import with_resolved_files
from orchestrator.submission.files import write_submission
from orchestrator.system import SystemSpec
from orchestrator.tracking.outbox import POLL_SECONDS, Outbox, experiment_name
from orchestrator.training.job import RunOptions
from orchestrator.training.launch import BranchesFailed, train_missing, unfinished
from scoring.errors import counted
from scoring.table import read_table

log = logging.getLogger(__name__)


def run(systems: Sequence[SystemSpec], options: RunOptions) -> dict[str, dict[str, Any]]:
    """Bring every system to its deliverables; returns each system's result, as saved in `result.json`.

    Raises InputError if the data, a checkpoint or a request cannot be used, or another run writes to the same folder.
    Raises BranchesFailed if branches failed; all others are finished then, and running again tries only these. With
    `fuse_incomplete` the systems are delivered from the others before this is raised.
    """
    check_address(options.address)  # before minutes go into decoding
    options = replace(options, out=options.out.resolve())  # Ray changes the working directory, for all threads
    dataset = Dataset.read(options.data, options.out / DIGESTS, write=True)
    systems = [with_resolved_files(system) for system in systems]
    plan = make_plan(systems, dataset)
    with ExitStack() as stack:
        stack.enter_context(only_driver(options.out))
        if options.storage:
            stack.enter_context(stored_run(Storage(options.storage, options.out), options.out))
        experiment = experiment_name(options.data, dataset.fingerprint, options.out)
        outbox = Outbox(options.tracking_uri, options.out, experiment)
        status: Status = "FAILED"
        try:
            with every(POLL_SECONDS, outbox.send), ExitStack() as cluster:

                @cache
                def connect() -> None:  # when something first needs it: a finished run needs neither Ray nor MLflow
                    outbox.begin()
                    cluster.enter_context(session(options.address))

                results = _bring(systems, plan, dataset, options, connect)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            waiting = outbox.close(status)
            if waiting:
                log.warning("not in MLflow yet: %s; run again to send", counted(waiting, "result"))
    return results


def _bring(
    systems: Sequence[SystemSpec], plan: Plan, dataset: Dataset, options: RunOptions, connect: Callable[[], None]
) -> dict[str, dict[str, Any]]:
    """Train what is missing, fuse and write the deliverables."""
    failure = train_missing(plan, dataset, options, connect)
    if failure is not None and not options.fuse_incomplete:
        raise failure
    plan = without(plan, {name for branch in unfinished(plan.branches, options.out) for name in table_names(branch)})
    results = {}
    for system in [system for system in systems if plan.trees[system.name]]:
        results[system.name] = fused_system(system, dataset, plan, options.out, _runner(connect))
        fused = read_table(options.out / SYSTEMS / system.name / FUSED)
        write_submission(fused, options.out / "submission" / system.name)
    if results and not (options.out / REPORT).exists():
        from orchestrator.report.page import write_report  # draws, which takes packages that load for a second

        log.info("writing %s", options.out / REPORT)
        write_report(options.out)
    if failure is not None:
        raise failure
    if empty := [system.name for system in systems if not plan.trees[system.name]]:
        raise BranchesFailed(f"nothing to fuse in {', '.join(empty)}: see {options.out / FAILURES}")
    return results


def _runner(connect: Callable[[], None]) -> Runner:
    """Runs fusion searches on the cluster, which is connected to when there is something to search."""

    def run(*work: Any) -> Any:
        connect()
        return run_on_ray(*work)

    return run
