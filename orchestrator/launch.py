"""Train branches with Ray Tune: one trial per branch, one branch's failure does not stop the others."""

from __future__ import annotations

import io
import logging
import shutil
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pyarrow as pa
from ray import tune

from orchestrator.overview import petaflop
from orchestrator.plan import Branch
from orchestrator.progress import shown
from orchestrator.worker import Job, train_and_score
from scoring.errors import InputError

# Workers and nodes that are lost count as failures, and a branch of many hours may lose several.
RETRIES = 3


# What a trial does; see `train_and_score`.
Work = Callable[[Branch, Job, pa.Table, Callable[[int, float], None]], float | None]


def launch(
    branches: Sequence[Branch],
    job: Job,
    index: pa.Table,
    folder: Path,
    work: Work = train_and_score,
) -> dict[str, str]:
    """Train and score the branches on the connected Ray cluster.

    Parameters
    ----------
    folder: for Tune's own files; removed at the end

    Returns
    -------
    failures: branch_id → traceback of every branch that failed
    """
    # The longest first: a long branch that starts last leaves the other slots idle at the end.
    ordered = sorted(branches, key=lambda branch: petaflop(branch.spec, index.num_rows), reverse=True)
    by_id = {branch.branch_id: branch for branch in ordered}
    trainable = tune.with_parameters(_trial, branches=by_id, job=job, index=index, work=work)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are told by name at the end
    # Standard output belongs to the result; Tune says some things at any verbosity.
    with shown(ordered, index.num_rows, job.resources) as watcher, redirect_stdout(io.StringIO()):
        tuner = tune.Tuner(
            tune.with_resources(trainable, job.resources),
            param_space={"branch_id": tune.grid_search(list(by_id))},
            tune_config=tune.TuneConfig(
                trial_name_creator=lambda trial: trial.config["branch_id"],
                trial_dirname_creator=lambda trial: trial.config["branch_id"],
                # A new process per GPU trial, since a process keeps its GPU memory.
                reuse_actors=not job.gpus,
            ),
            run_config=tune.RunConfig(
                name=folder.name,
                storage_path=str(folder.parent),
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                callbacks=[watcher],
                verbose=0,
            ),
        )
        results = tuner.fit()
    shutil.rmtree(folder, ignore_errors=True)
    failures = {r.config["branch_id"]: str(r.error) for r in results if r.error is not None}
    refused = {r.config["branch_id"]: r.metrics["failure"] for r in results if r.metrics and "failure" in r.metrics}
    return {**failures, **refused}


def _trial(config: dict[str, Any], branches: dict[str, Branch], job: Job, index: pa.Table, work: Work) -> None:
    branch = branches[config["branch_id"]]
    try:
        omega = work(branch, job, index, lambda step, loss: tune.report({"step": step, "loss": loss}))
    except InputError as error:  # would come again at every try
        tune.report({"failure": str(error)})
    else:
        tune.report({"omega": omega})
