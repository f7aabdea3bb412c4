"""One run: train what is missing, score, fuse, deliver. Running it again continues.

out/branches/, systems/         the ledger: score tables, weights and results, see orchestrator/ledger.py
out/failures/                   why branches failed, until they are tried again
out/mlflow.db, mlartifacts/     the default MLflow store, which shows what is in the ledger
out/submission/<name>/          the challenge's CSV files
out/report.html                 what a person looks at
out/cache/, checkpoints/        decoded audio, frozen embeddings, and resumable checkpoints of unfinished branches
out/generated/<id>/             generated clips of rare conditions, and how they were judged
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from branches.dataset import fingerprint, noise_index, read_index
from cluster.session import check_address, gpus_of_a_branch, require, session
from orchestrator.fusing import FUSED, fused_system
from orchestrator.generation import make_sets
from orchestrator.ledger import SYSTEMS, Status, add_systems, finished_tables, only_driver, record_failure, tidy
from orchestrator.outbox import Outbox
from orchestrator.plan import SCORE_CODE, Branch, Plan, code_version, detector_id, make_plan, table_names, without
from orchestrator.preflight import check_models, check_noise, notes_on, with_resolved_files
from orchestrator.report import REPORT, write_report
from orchestrator.spec import SystemSpec
from orchestrator.submission import write_submission
from orchestrator.tracking import experiment_name, open_tracker
from orchestrator.worker import Job, branch_record
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
    fuse_incomplete: fuse the branches that are finished where others failed
    """

    data: Path
    out: Path
    address: str = "local"
    tracking_uri: str | None = None
    cpus_per_branch: int = 1
    gpus_per_branch: float | None = None
    checkpoint_seconds: float = 60.0
    fuse_incomplete: bool = False


def run(systems: Sequence[SystemSpec], place: Place) -> dict[str, dict[str, Any]]:
    """Bring every system to its deliverables; returns each system's result, as saved in `result.json`.

    Raises
    ------
    InputError
        If the data, a checkpoint or a request cannot be used, or another run writes to the same folder.
    BranchesFailed
        If branches failed; all others are finished then, and running again tries only these. With
        `fuse_incomplete` the systems are delivered from the others before this is raised.
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
    with only_driver(place.out):
        experiment = experiment_name(place.data, mark, place.out)
        outbox = Outbox(open_tracker(place.tracking_uri, place.out, experiment), place.out)
        status: Status = "FAILED"
        files: list[Path] = []
        try:
            with outbox, _Cluster(place.address) as cluster:
                results = _bring(systems, plan, index, mark, place, cluster)
            checks = sorted((place.out / "generated").glob("*/check.json"))
            status, files = "FINISHED", [place.out / REPORT, *checks]
        except (RunInterrupted, KeyboardInterrupt):
            status = "KILLED"
            raise
        finally:
            waiting = outbox.close(status, files)
            if waiting:
                log.warning("%d results wait for MLflow; `tutti sync` or the next run sends them", waiting)
    return results


def _bring(
    systems: Sequence[SystemSpec], plan: Plan, index: pa.Table, mark: str, place: Place, cluster: _Cluster
) -> dict[str, dict[str, Any]]:
    """Train, fuse and write the deliverables."""
    tables = _finished_tables(plan.branches, place.out)
    missing = _missing(plan, tables)
    tidy(place.out, [branch.branch_id for branch in missing])
    for branch in plan.branches:
        add_systems(place.out, branch.branch_id, branch.systems)
    log.info("%d branches, %d of them finished", len(plan.branches), len(plan.branches) - len(missing))
    failure: BranchesFailed | None = None
    if missing:
        failures = _train(missing, plan, index, mark, place, cluster)
        tables |= _finished_tables(missing, place.out)
        failure = _failure(_missing(plan, tables), failures, place.out, mark)
    if failure is not None:
        if not place.fuse_incomplete or isinstance(failure, RunInterrupted):
            raise failure
        plan = without(plan, {name for branch in _missing(plan, tables) for name in table_names(branch)})
    results = {}
    for system in [system for system in systems if plan.trees[system.name]]:
        folder = place.out / SYSTEMS / system.name
        results[system.name] = fused_system(system, mark, plan, tables, folder, cluster.fusion_runner)
        write_submission(read_table(folder / FUSED), place.out / "submission" / system.name)
    if results:
        write_report(place.out, mark)
    if failure is not None:
        raise failure
    return results


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


def _finished_tables(branches: Sequence[Branch], out: Path) -> dict[str, pa.Table]:
    """Tables of the branches that are finished, named as in the plan's trees."""
    tables: dict[str, pa.Table] = {}
    for branch in branches:
        found = finished_tables(out, branch.branch_id, [detector_id(d) for d in branch.detectors])
        tables |= {f"{branch.branch_id}/{name}": table for name, table in (found or {}).items()}
    return tables


def _missing(plan: Plan, tables: Mapping[str, pa.Table]) -> list[Branch]:
    return [branch for branch in plan.branches if table_names(branch)[0] not in tables]


def _train(
    missing: Sequence[Branch], plan: Plan, index: pa.Table, mark: str, place: Place, cluster: _Cluster
) -> dict[str, str]:
    """Train and score what is missing; by branch_id, why branches failed."""
    check_models(missing)
    check_noise(noise_index(place.data), missing)
    out = place.out.resolve()
    job = Job(
        data=place.data.resolve(),
        out=out,
        cache=out / "cache" / mark[:16],
        checkpoints=out / "checkpoints" / code_version(*SCORE_CODE),
        fingerprint=mark,
        threads=place.cpus_per_branch,
        gpus=0.0,  # until the cluster has been asked
        checkpoint_seconds=place.checkpoint_seconds,
        code=code_version(*SCORE_CODE),
        specs=tuple(branch.spec for branch in plan.branches),
    )
    _tidy_checkpoints(job.checkpoints)
    _prepare(job, index, missing)
    cluster.connect()
    job = replace(job, gpus=gpus_of_a_branch(place.gpus_per_branch))
    require(job.resources)
    from orchestrator.launch import launch  # imports ray, and that only after the session has set it up

    failures = make_sets(missing, job, index)
    ready = [branch for branch in missing if branch.branch_id not in failures]
    failures |= launch(ready, job, index, out / "tune") if ready else {}
    _tidy_checkpoints(job.checkpoints)
    return failures


def _prepare(job: Job, index: pa.Table, branches: Sequence[Branch]) -> None:
    """Decode what branches hear, so that a damaged clip is found now, and no GPU waits for it."""
    from branches.audio import open_cache  # loads torch, which a finished run does not need
    from branches.channels import with_cancellation

    audio = open_cache(job.data, index, job.decoded)
    if any(branch.spec.channel == "cancel" for branch in branches):
        with_cancellation(audio, job.derived)
    if any((noise := b.spec.augmentation.noise) and noise.source == "supplemental" for b in branches):
        open_cache(job.data, noise_index(job.data), job.decoded_noise)
    for old in {path for path in job.cache.iterdir() if path.is_dir()} - {job.decoded, job.decoded_noise, job.derived}:
        shutil.rmtree(old)
    for note in notes_on(index, audio, branches):
        log.warning(note)


def _tidy_checkpoints(folder: Path) -> None:
    """Remove checkpoints that no training can go on from: half-written ones, and those of other code."""
    folder.mkdir(parents=True, exist_ok=True)
    for other in folder.parent.iterdir():
        if other != folder:
            shutil.rmtree(other) if other.is_dir() else other.unlink()
    for half in folder.glob("*.tmp"):
        half.unlink()


def _failure(unfinished: Sequence[Branch], failures: Mapping[str, str], out: Path, mark: str) -> BranchesFailed | None:
    """What to say of the branches that are not finished, with a record of each one's failure."""
    if not unfinished:
        return None
    if not failures:
        return RunInterrupted(f"interrupted with {len(unfinished)} branches unfinished; run again to continue")
    lines = []
    for branch in unfinished:
        reason = failures.get(branch.branch_id, "not finished; its score tables are not in the ledger")
        path = record_failure(out, branch.branch_id, branch_record(branch, mark), reason)
        lines.append(f"{branch.name} (system {', '.join(branch.systems)}): {reason.strip().splitlines()[-1]} [{path}]")
    return BranchesFailed(
        f"{len(unfinished)} branches failed, the others are kept; run again to retry, or add --fuse-incomplete to "
        "fuse the others\n" + "\n".join(lines)
    )
