"""What the benchmarks share: seconds of calls, metrics by scikit-learn, and branches that only sleep."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from branches.spec import BranchSpec
from orchestrator.plan import Branch
from orchestrator.training.generated import StageReport
from orchestrator.training.job import Job
from scoring.detectors import MahalanobisSpec
from tests.tables import make_table


def fastest(*calls: Callable[[], object], rounds: int, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Seconds of each call's fastest round; the rounds of what is compared alternate."""
    best = [float("inf")] * len(calls)
    for _ in range(rounds):
        for i, call in enumerate(calls):
            start = clock()
            call()
            best[i] = min(best[i], clock() - start)
    return best


def sklearn_cells(table: pa.Table, score: NDArray[np.float64]) -> list[float]:
    """AUCs and pAUC of each machine's test clips, with one call of scikit-learn each."""
    machine, domain, condition = (table[column].to_numpy() for column in ("machine", "domain", "condition"))
    anomaly, cells = condition == "anomaly", []
    for name in np.unique(machine):
        own = machine == name
        for of_domain in ("source", "target"):
            rows = own & (anomaly | (domain == of_domain))
            cells.append(roc_auc_score(anomaly[rows], score[rows]))
        cells.append(roc_auc_score(anomaly[own], score[own], max_fpr=0.1))
    return cells


@dataclass(frozen=True)
class Sleeper:
    """Work that sleeps, and notes when."""

    seconds: float

    def __call__(self, branch: Branch, job: Job, index: pa.Table, report: StageReport) -> None:
        begin = time.time()
        time.sleep(self.seconds)
        (job.out / branch.branch_id).write_text(json.dumps([begin, time.time()]))


def launched(folder: Path, count: int, seconds: float) -> tuple[float, list[tuple[float, float]]]:
    """Seconds that `launch` takes for so many branches that sleep, and from when to when each of them slept."""
    from orchestrator.training.launch import launch  # which a branch's process, that loads this module, has no need of

    folder.mkdir()
    nothing = make_table().select([])
    place = {"data": folder, "out": folder, "gpus_per_branch": 0.0}
    job = Job(**place, fingerprint="", training="", noise=nothing, versions=[], frozen=())
    names = [f"{i:016d}" for i in range(count)]
    branches = [Branch(n, "", n, ("s",), BranchSpec(seed=int(n)), (MahalanobisSpec(),)) for n in names]
    began = time.time()
    failures = launch(branches, job, nothing, Sleeper(seconds))
    total = time.time() - began
    assert not failures
    return total, sorted(json.loads(path.read_text()) for path in folder.iterdir() if path.is_file())
