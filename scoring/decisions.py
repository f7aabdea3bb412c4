"""Decisions: is a clip an anomaly? Thresholds come from training normals only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import scipy
from numpy.typing import NDArray

from scoring.calibration import check_varied
from scoring.errors import InputError
from scoring.metrics import has_labels
from scoring.table import groups, rows_of

FALSE_ALARMS = 0.1  # share of normal clips above a threshold, as in the challenge
QUANTILE = 1 - FALSE_ALARMS
NO_SKEW = 1.6e-5  # below which rounding spoils the gamma's quantile

Rule = Literal["gamma", "false_alarm"]
Thresholds = Mapping[tuple[str, int], float]


def gamma_threshold(train: NDArray[np.float64], quantile: float = QUANTILE) -> float:
    """Quantile of the gamma distribution fitted to training scores (n,), as in the challenge's baseline.

    The three parameters (shape, location, scale) are fitted by moments, since fused scores may be negative
    and the likelihood of a free location is unbounded: a Pearson type III distribution, which is the gamma
    shifted, and the normal where the scores have no skew. `scipy.stats.pearson3` gives the same, but takes longer to
    load than a clip to be scored.
    """
    deviation = train - train.mean()
    variance = (deviation**2).mean()
    skew = (deviation**3).mean() / variance**1.5 if variance > 0 else 0.0
    if abs(skew) < NO_SKEW:
        standard = scipy.special.ndtri(quantile)
    else:
        gamma = scipy.special.gammaincinv((2 / skew) ** 2, quantile if skew > 0 else 1 - quantile)
        standard = gamma * skew / 2 - 2 / skew
    return float(train.mean() + train.std() * standard)


def false_alarm_threshold(train: NDArray[np.float64], quantile: float = QUANTILE) -> float:
    """The training score (of n) that a further normal clip exceeds with probability 1 − `quantile` at most.

    Whatever the distribution, the k-th of n scores is exceeded with probability 1 − k / (n + 1), if the further
    clip is like those of the training (Vovk, Gammerman and Shafer, "Algorithmic learning in a random world", 2005).

    Raises InputError if n is too small for any of the scores to be enough.
    """
    rank = int(np.ceil((len(train) + 1) * quantile - 1e-9))
    if rank > len(train):
        needed = int(np.ceil(quantile / (1 - quantile) - 1e-9))
        raise InputError(
            f"{len(train)} training scores cannot keep false alarms below {1 - quantile:.3g}; {needed} can, or take "
            "the gamma rule"
        )
    return float(np.sort(train)[rank - 1])


RULES: dict[Rule, Callable[[NDArray[np.float64], float], float]] = {
    "gamma": gamma_threshold,
    "false_alarm": false_alarm_threshold,
}


def thresholds(table: pa.Table, rule: Rule = "gamma", quantile: float = QUANTILE) -> dict[tuple[str, int], float]:
    """Threshold on `score` of each machine and section, from the table's training rows.

    Raises InputError if a machine and section has fewer than two training rows, scores that do not vary, or too few for
    the rule.
    """
    train, score = table["split"].to_numpy() == "train", table["score"].to_numpy()
    limits = {}
    for machine, section, group in groups(table):
        check_varied(score[group & train], f"machine {machine} section {section}")
        limits[machine, section] = RULES[rule](score[group & train], quantile)
    return limits


@dataclass(frozen=True)
class DecisionMetrics:
    """What decisions are worth, in per cent; None where there is nothing to divide by."""

    precision: float | None
    recall: float | None
    f1: float | None


def decision_metrics(table: pa.Table, limits: Thresholds) -> dict[str, DecisionMetrics]:
    """Precision, recall and F1 of each machine with labelled test rows; scores above the threshold are anomalies.

    Parameters
    ----------
    table: a score table; a machine's sections are counted together
    limits: threshold of each machine and section, from `thresholds`

    Raises InputError if no test row has a known condition.
    """
    if not has_labels(table):
        raise InputError("no test clip has a known condition; metrics need labelled clips")
    machine, condition, score = rows_of(table, ["machine", "condition", "score"])
    known = (table["split"].to_numpy() == "test") & table["condition"].is_valid().to_numpy()
    alarm = np.zeros(len(score), bool)
    for name, section, group in groups(table):
        alarm[group] = score[group] > limits[name, section]
    metrics = {}
    for name in dict.fromkeys(machine[known]):
        own = known & (machine == name)
        anomaly = own & (condition == "anomaly")
        hits, alarms, anomalies = (int(rows.sum()) for rows in (anomaly & alarm, own & alarm, anomaly))
        metrics[name] = DecisionMetrics(
            _share(hits, alarms), _share(hits, anomalies), _share(2 * hits, alarms + anomalies)
        )
    return metrics


def _share(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None
