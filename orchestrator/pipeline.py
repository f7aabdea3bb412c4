"""One run: train what is missing, score, fuse, deliver. Running it again continues.

out/mlflow.db, mlartifacts/     the default MLflow store: branches and their score tables
out/systems/<name>/             fused.parquet and result.json of each system
out/submission/<name>/          the challenge's CSV files
out/report.html                 what a person looks at
out/cache/, checkpoints/        decoded audio, frozen embeddings, and resumable checkpoints of unfinished branches
out/generated/<id>/             generated clips of rare conditions, and how they were judged
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock, Timeout

from branches.dataset import fingerprint, noise_index, read_index
from cluster.session import check_address, session
from orchestrator.fusing import FUSED, fused_system
from orchestrator.generation import make_sets
from orchestrator.plan import SCORE_CODE, Branch, Plan, code_version, detector_id, make_plan, table_names
from orchestrator.preflight import check_models, check_noise, notes_on, with_resolved_files
from orchestrator.report import write_report
from orchestrator.spec import SystemSpec
from orchestrator.submission import write_submission
from orchestrator.tracking import Tracker, experiment_name, open_tracker
from orchestrator.worker import Job
from scoring.errors import InputError
from scoring.table import read_table

log = logging.getLogger(__name__)


class BranchesFailed(RuntimeError):
    """Some branches could not be trained; the others are finished and recorded."""


class RunInterrupted(BranchesFailed):
    """The run was stopped from outside; what it had finished is kept."""


@dataclass(frozen=True)
class Place:
    """Where a run reads, writes and computes.

    gpus_per_branch: None takes one where the cluster has GPUs
    """

    data: Path
    out: Path
    address: str = "local"
    tracking_uri: str | None = None
    cpus_per_branch: int = 1
    gpus_per_branch: float | None = None
    checkpoint_seconds: float = 60.0


def run(systems: Sequence[SystemSpec], place: Place) -> dict[str, dict[str, Any]]:
    """Bring every system to its deliverables; returns each system's result, as saved in `result.json`.

    Raises
    ------
    InputError
        If the data, a checkpoint or a request cannot be used, or another run writes to the same folder.
    BranchesFailed
        If branches failed; all others are finished then, and running again tries only these.
    """
    check_address(place.address)  # before minutes go into decoding
    index = read_index(place.data)
    mark = fingerprint(place.data, index)
    systems = [with_resolved_files(system) for system in systems]
    plan = make_plan(systems, mark)
    try:
        place.out.mkdir(parents=True, exist_ok=True)
        (place.out / ".lock").touch()
    except OSError as error:
        raise InputError(f"{place.out}: cannot write there ({error.strerror}); give another --out") from None
    with _only_driver(place.out), _Cluster(place.address) as cluster:
        tracker = open_tracker(place.tracking_uri, place.out, experiment_name(place.data, mark, place.out))
        tracker.close_unfinished()
        with tracker.run(place.out.resolve().name, {"role": "run"}, {}) as parent:
            tracker = replace(tracker, parent_id=parent.run_id)
            tables = _finished_tables(plan.branches, tracker)
            for branch in plan.branches:
                tracker.add_systems(branch.branch_id, branch.systems)
            log.info("%d branches, %d of them finished", len(plan.branches), _count_finished(plan, tables))
            tables |= _train_missing(plan, tables, index, mark, tracker, place, cluster)
            for path in (place.out / "generated").glob("*/check.json"):
                parent.upload(path)
            results = {}
            for system in systems:
                folder = place.out / "systems" / system.name
                results[system.name] = fused_system(system, mark, plan, tables, tracker, folder, cluster.fusion_runner)
                write_submission(read_table(folder / FUSED), place.out / "submission" / system.name)
            parent.upload(write_report(place.out, mark))
    return results


@contextmanager
def _only_driver(out: Path) -> Iterator[None]:
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{out}: another run is writing to this folder; wait for it or give another --out") from None
    try:
        yield
    finally:
        lock.release()


class _Cluster:
    """The Ray session of a run, opened when something first needs it: a finished run needs none."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._stack = ExitStack()
        self._open = False

    def __enter__(self) -> _Cluster:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def connect(self) -> None:
        if not self._open:
            self._stack.enter_context(session(self._address))
            self._open = True

    def fusion_runner(self, *work: Any) -> Any:
        """The runner of fusion searches on this cluster."""
        self.connect()
        from fusion.job import run_on_ray

        return run_on_ray(*work)


def _finished_tables(branches: Sequence[Branch], tracker: Tracker) -> dict[str, pa.Table]:
    """Tables of the branches that are finished, named as in the plan's trees."""
    tables: dict[str, pa.Table] = {}
    for branch in branches:
        found = tracker.finished(branch.branch_id, [detector_id(d) for d in branch.detectors])
        tables |= {f"{branch.branch_id}/{name}": table for name, table in (found or {}).items()}
    return tables


def _missing(plan: Plan, tables: Mapping[str, pa.Table]) -> list[Branch]:
    return [branch for branch in plan.branches if table_names(branch)[0] not in tables]


def _count_finished(plan: Plan, tables: Mapping[str, pa.Table]) -> int:
    return len(plan.branches) - len(_missing(plan, tables))


def _train_missing(
    plan: Plan,
    tables: Mapping[str, pa.Table],
    index: pa.Table,
    mark: str,
    tracker: Tracker,
    place: Place,
    cluster: _Cluster,
) -> dict[str, pa.Table]:
    missing = _missing(plan, tables)
    if not missing:
        return {}
    from branches.audio import open_cache  # loads torch, which a finished run does not need

    check_models(missing)
    check_noise(noise_index(place.data), missing)
    out = place.out.resolve()
    job = Job(
        data=place.data.resolve(),
        cache=out / "cache" / mark[:16],
        checkpoints=out / "checkpoints",
        fingerprint=mark,
        tracker=tracker,
        threads=place.cpus_per_branch,
        device="cpu",  # until the cluster has been asked for GPUs
        checkpoint_seconds=place.checkpoint_seconds,
        code=code_version(*SCORE_CODE),
        specs=tuple(branch.spec for branch in plan.branches),
        generated=out / "generated",
    )
    job.checkpoints.mkdir(exist_ok=True)
    for note in notes_on(index, open_cache(job.data, index, job.cache), missing):
        log.warning(note)
    cluster.connect()
    from orchestrator.launch import launch  # imports ray, and that only after the session has set it up

    failures = make_sets(missing, job, index)
    ready = [branch for branch in missing if branch.branch_id not in failures]
    failures |= launch(ready, job, index, out / "tune", place.gpus_per_branch) if ready else {}
    tracker.close_unfinished()
    trained = _finished_tables(missing, tracker)
    _raise_for(_missing(plan, {**tables, **trained}), failures, out)
    return trained


def _raise_for(unfinished: Sequence[Branch], failures: Mapping[str, str], out: Path) -> None:
    if not unfinished:
        return
    if not failures:
        raise RunInterrupted(f"interrupted with {len(unfinished)} branches unfinished; run again to continue")
    folder = out / "failures"
    folder.mkdir(exist_ok=True)
    lines = []
    for branch in unfinished:
        reason = failures.get(branch.branch_id, "not finished; its score tables are not in the MLflow store")
        path = folder / f"{branch.branch_id}.txt"
        path.write_text(reason)
        lines.append(f"{branch.name} (system {', '.join(branch.systems)}): {reason.strip().splitlines()[-1]} [{path}]")
    raise BranchesFailed(
        f"{len(unfinished)} branches failed, the others are kept; run again to retry\n" + "\n".join(lines)
    )
