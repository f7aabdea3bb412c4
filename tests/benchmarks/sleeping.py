"""Branches that only sleep, so that what is measured is the launching and not the training."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from branches.spec import BranchSpec
from orchestrator.plan import Branch
from orchestrator.training.generated import StageReport
from orchestrator.training.job import Job
from scoring.detectors import MahalanobisSpec
from tests.tables import make_table


@dataclass(frozen=True)
class Sleeper:
    """Work that sleeps, reports as a training does, and notes when."""

    seconds: float
    reports: int = 0

    def __call__(self, branch: Branch, job: Job, index: pa.Table, report: StageReport) -> None:
        begin = time.time()
        for i in range(self.reports):
            time.sleep(self.seconds / self.reports)
            report("branch", i + 1, self.reports, 1.0)
        if not self.reports:
            time.sleep(self.seconds)
        (job.out / branch.branch_id).write_text(json.dumps([begin, time.time()]))


def sleeping(count: int) -> list[Branch]:
    """Branches of one configuration."""
    return [Branch(f"{i:016d}", "", str(i), ("s",), BranchSpec(seed=i), (MahalanobisSpec(),)) for i in range(count)]


def launched(folder: Path, count: int, work: Sleeper, gpus: float = 0.0) -> tuple[float, list[tuple[float, float]]]:
    """Seconds that `launch` takes in all, and the span of each branch's work."""
    from orchestrator.training.launch import launch  # which a branch's process, that loads this module, has no need of

    folder.mkdir()
    job = Job(
        data=folder,
        out=folder,
        gpus_per_branch=gpus,
        fingerprint="",
        training="",
        noise=make_table().select([]),
        versions=[],
        frozen=(),
    )
    began = time.time()
    failures = launch(sleeping(count), job, make_table().select([]), work)
    total = time.time() - began
    assert not failures
    return total, [json.loads(path.read_text()) for path in folder.iterdir() if path.is_file()]
