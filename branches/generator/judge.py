"""The check of samples against real training clips: neither copies, nor far away, and of the condition they claim.

All is judged on band statistics (`branches.generator.real_clips.band_statistics`), a space that no training shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from branches.generator.conditions import Condition
from branches.generator.real_clips import RealClips, WindowStatistics
from scoring.mahalanobis import Mahalanobis

VERDICTS = ("accepted", "copy", "far", "inconsistent")
_FEW = 3
"""Fewer clips of a condition do not tell how far apart its clips usually are."""


@dataclass(frozen=True)
class Judgement:
    """The check of m samples.

    nearest: (m,) training clip that each is nearest to, of any condition of its machine and section
    nearest_distance: (m,) distance to it, 1 = usual between neighbours there
    own_distance: (m,) distance to the nearest clip of the wanted condition, 1 = usual between neighbours of it
    heard: (m,) name of the condition that the classifier hears
    verdict: (m,) one of `VERDICTS`; the first reason against a sample counts, in their order
    """

    nearest: NDArray[np.int64]
    nearest_distance: NDArray[np.float64]
    own_distance: NDArray[np.float64]
    heard: NDArray[np.object_]
    verdict: NDArray[np.object_]


class SampleCheck:
    """Knows the real training clips, and judges samples.

    copy_below, far_above: limits of the two distances of `Judgement`
    """

    def __init__(self, clips: RealClips, statistics: WindowStatistics, copy_below: float, far_above: float) -> None:
        self.copy_below, self.far_above = copy_below, far_above
        values, clip = statistics.values, statistics.clip
        names = np.array([str(c) for c in clips.conditions], object)
        groups = np.array([c.group for c in clips.conditions], object)
        self._neighbours = {
            str(group): Neighbours(values[rows], clip[rows], names[clip[rows]])
            for group in np.unique(groups)
            for rows in [groups[clip] == group]
        }
        held = held_out(names)[clip]
        self._classifier = Classifier().fit(values[~held], groups[clip[~held]], names[clip[~held]])
        self._held_out = values[held], names[clip[held]]

    def judge(self, statistics: NDArray[np.float32], wanted: Sequence[Condition]) -> Judgement:
        """Judge samples by their band statistics (m, 3, 128) and the conditions they claim (m,)."""
        claimed = [str(c) for c in wanted]
        found = [
            self._neighbours[c.group].nearest(s, name) for s, c, name in zip(statistics, wanted, claimed, strict=True)
        ]
        nearest, nearest_distance, own_distance = (np.array(column) for column in zip(*found, strict=True))
        predicted = self._classifier.predict(statistics)
        reasons = [nearest_distance < self.copy_below, own_distance > self.far_above, predicted != claimed]
        verdict = np.select(reasons, VERDICTS[1:], VERDICTS[0]).astype(object)
        return Judgement(nearest, nearest_distance, own_distance, predicted, verdict)

    def accuracy(self) -> dict[str, float]:
        """Share of the held-out real windows that the classifier gets right, for each condition that has any."""
        statistics, names = self._held_out
        right = self._classifier.predict(statistics) == names
        return {str(name): float(right[names == name].mean()) for name in np.unique(names)}


class Neighbours:
    """The real windows of one machine and section, and how near they usually are to each other.

    A distance is Euclidean between the means and standard deviations of all bands. It is usual if it is the median
    of those from real clips to their nearest neighbours (leave-one-out). The changes from frame to frame are left
    out: that they move by as much with the place of a frame as between clips would hide a copy.

    statistics: (W, 3, 128); clip: (W,); condition: (W,) names
    """

    def __init__(
        self, statistics: NDArray[np.float32], clip: NDArray[np.int64], condition: NDArray[np.object_]
    ) -> None:
        self._points, self._clip, self._condition = _levels(statistics), clip, condition
        # One window of each clip is enough on one side, and keeps the matrix small where clips have many.
        first = np.unique(clip, return_index=True)[1]
        between = cdist(self._points[first], self._points)
        between[clip[first][:, None] == clip] = np.inf
        own = np.where(condition[first][:, None] == condition, between, np.inf)
        self._usual = _median(between.min(axis=1), 1.0)
        # With one or two clips the nearest neighbour is any other one.
        any_other = _median(own[np.isfinite(own)], self._usual)
        self._usual_own = {
            str(name): _median(own[rows].min(axis=1), any_other) if rows.sum() >= _FEW else any_other
            for name in np.unique(condition)
            for rows in [condition[first] == name]
        }

    def nearest(self, statistics: NDArray[np.float32], condition: str) -> tuple[int, float, float]:
        """Nearest clip to band statistics (3, 128), its distance, and that to the nearest clip of a condition.

        The latter is infinite if there is no clip of the condition.
        """
        distance = cdist(_levels(statistics[None]), self._points)[0]
        to_condition = distance[self._condition == condition].min(initial=np.inf)
        nearest = int(distance.argmin())
        return (
            int(self._clip[nearest]),
            distance[nearest] / self._usual,
            to_condition / self._usual_own.get(condition, 1.0),
        )


def _median(distances: NDArray[np.float64], otherwise: float) -> float:
    """The median; `otherwise` if there are none, or if clips are copies of each other, so that it is no unit."""
    median = float(np.median(distances)) if len(distances) else 0.0
    return median if median > 0 else otherwise


def _levels(statistics: NDArray[np.float32]) -> NDArray[np.float32]:
    return statistics[:, :2].reshape(len(statistics), -1)


class Classifier:
    """Hears first the machine, then its condition.

    Each time the class with the nearest mean in Mahalanobis distance: linear discriminants with a shrunk covariance
    and all classes as likely as each other. Statistics are averaged over eight bands: 48 features are few enough
    for conditions of five clips.
    """

    def fit(
        self, statistics: NDArray[np.float32], group: NDArray[np.object_], condition: NDArray[np.object_]
    ) -> Classifier:
        """Learn from band statistics (n, 3, 128) with the machine (and section) and the condition of each (n,)."""
        features = _coarse(statistics)
        self._unit = np.maximum(features.std(axis=0), 1e-3)
        X = features / self._unit
        self._machine = Mahalanobis().fit(X, group)
        self._condition = {g: Mahalanobis().fit(X[group == g], condition[group == g]) for g in np.unique(group)}
        return self

    def predict(self, statistics: NDArray[np.float32]) -> NDArray[np.object_]:
        """Names (m,) of the conditions that band statistics (m, 3, 128) are of."""
        X = _coarse(statistics) / self._unit
        machine = _nearest_class(self._machine, X)
        predicted = np.empty(len(X), object)
        for group in np.unique(machine):
            rows = machine == group
            predicted[rows] = _nearest_class(self._condition[group], X[rows])
        return predicted


def _coarse(statistics: NDArray[np.float32]) -> NDArray[np.float64]:
    parts = statistics.astype(np.float64).reshape(len(statistics), 3, 16, -1)
    return parts.mean(axis=3).reshape(len(statistics), -1)


def _nearest_class(fitted: Mahalanobis, X: NDArray[np.float64]) -> NDArray[np.object_]:
    return fitted.groups_[fitted.distances(X).argmin(axis=1)]


def held_out(names: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Half of the clips of each condition, one of a kind excepted: (clips,) bool.

    Drawn at random, with a seed of its own: in the order of names, settings that no name tells often take turns.
    """
    rng = np.random.default_rng(0)
    chosen = np.zeros(len(names), bool)
    for name in np.unique(names):
        rows = rng.permutation(np.flatnonzero(names == name))
        chosen[rows[: len(rows) // 2]] = True
    return chosen
