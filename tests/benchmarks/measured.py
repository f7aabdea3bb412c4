"""What the benchmarks share: seconds of calls, and metrics by scikit-learn."""

import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score


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
