"""What the ensemble knows of one machine and section: its normals, fitted once and asked many times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fusion.joined import weighted_sum
from fusion.scales import contributions, on_scale
from orchestrator.model.manifest import Member
from scoring.banks import Bank
from scoring.calibration import METHODS, check_varied, location_scale
from scoring.decisions import FALSE_ALARMS, RULES, Rule

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Scores of M clips of one machine; `anomaly` is what the challenge calls the decision.

    score, calibrated, anomaly: (M,)
    threshold: that `score` must exceed
    members: (T, M) calibrated scores of the system's tables
    contributions: (T, M) whose sum over the tables is `score`
    """

    score: Array
    calibrated: Array
    anomaly: NDArray[np.bool_]
    threshold: float
    members: Array
    contributions: Array


class Reference:
    """The normals of one machine and section, as every member of the ensemble knows them.

    Parameters
    ----------
    members: T tables of the system
    scale: of the scores that their weights apply to
    clips: rows of the normal clips: domain, and attributes as text
    embeddings: (clips, …) by bank
    rule, false_alarms: of the threshold, see `scoring.decisions`

    Raises
    ------
    InputError
        If there are too few clips, or too few for the rule, or their embeddings or scores do not vary.
    """

    def __init__(
        self,
        members: Sequence[Member],
        scale: str,
        domain: NDArray[np.object_],
        attributes: NDArray[np.object_],
        embeddings: Mapping[str, NDArray[np.float32]],
        rule: Rule = "gamma",
        false_alarms: float = FALSE_ALARMS,
    ) -> None:
        self._members, self._scale = members, scale
        self._weights = np.array([member.weight for member in members])
        self._banks = []
        for member in members:
            member_attributes = attributes if member.detector.uses_attributes else None
            self._banks.append(Bank(member.detector, embeddings[member.bank], domain, member_attributes))
        for member, bank in zip(members, self._banks, strict=True):
            check_varied(bank.train_scores, member.name)
        self._train = np.stack([self._calibrated(i, bank.train_scores) for i, bank in enumerate(self._banks)])
        self.train_scores = weighted_sum(self._clips(0), self._train, self._weights, scale)
        check_varied(self.train_scores, "the system")
        self.threshold = RULES[rule](self.train_scores, 1 - false_alarms)

    def score(self, embeddings: Mapping[str, NDArray[np.float32]]) -> Scores:
        """Scores of M other clips from their embeddings (M, …) by bank."""
        member_scores = [bank.scores(embeddings[m.bank]) for m, bank in zip(self._members, self._banks, strict=True)]
        members = np.stack([self._calibrated(i, scores) for i, scores in enumerate(member_scores)])
        n, values = len(self.train_scores), np.concatenate([self._train, members], axis=1)
        clips = self._clips(members.shape[1])
        score = weighted_sum(clips, values, self._weights, self._scale)[n:]
        on = np.stack([on_scale(self._scale, clips, row)[n:] for row in values])
        shares = contributions(self._scale, self._weights, on)
        calibrated = location_scale(self.train_scores, score)
        return Scores(score, calibrated, score > self.threshold, self.threshold, members, shares)

    def _calibrated(self, member: int, scores: Array) -> Array:
        return METHODS[self._members[member].detector.calibration](self._banks[member].train_scores, scores)

    def _clips(self, others: int) -> pa.Table:
        """Rows of the normals and of so many other clips, all of one machine and section."""
        split = ["train"] * len(self._banks[0].train_scores) + ["test"] * others
        return pa.table({"machine": ["m"] * len(split), "section": [0] * len(split), "split": split})
