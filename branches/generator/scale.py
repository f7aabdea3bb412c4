"""How loud each band is, and how much it varies, under a condition: the part of a condition that needs no network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from torch import Tensor

from branches.frames import N_MELS
from branches.generator.conditions import Condition, Vocabulary
from branches.generator.real_clips import RealClips, WindowStatistics


class BandScale:
    """Mean and standard deviation of every band, as a sum of the effects of a condition's words.

    For each machine and section a ridge regression of the clips' band means and log standard deviations on their
    words: the effect of a word that few clips have is shrunk, and a combination that no clip has is the sum of its
    parts.
    """

    def __init__(self, clips: RealClips, statistics: WindowStatistics, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._fitted: dict[str, tuple[Ridge, NDArray[np.float64]]] = {}
        first, windows = np.unique(statistics.clip, return_index=True, return_counts=True)[1:]
        of_clip = np.add.reduceat(statistics.values[:, :2], first) / windows[:, None, None]
        groups = np.array([c.group for c in clips.conditions])
        for group in np.unique(groups):
            rows = groups == group
            words = self._indicators([c for c in clips.conditions if c.group == group])
            # A band without any change, as of digital silence, has no unit of its own.
            mean, log_std = of_clip[rows, 0], np.log(np.maximum(of_clip[rows, 1], 1e-3))
            ridge = Ridge(alpha=1.0).fit(words, np.hstack([mean, log_std]))
            left = mean - np.hsplit(ridge.predict(words), 2)[0]
            self._fitted[group] = ridge, left.var(axis=0)

    def of(self, conditions: Sequence[Condition]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (n, 1, 128) of the bands over time and clips of each condition."""
        words = self._indicators(conditions)
        mean, std = np.empty((2, len(conditions), N_MELS), np.float32)
        groups = np.array([c.group for c in conditions])
        for group in np.unique(groups):
            ridge, between_clips = self._fitted[group]
            mean[groups == group], log_std = np.hsplit(ridge.predict(words[groups == group]), 2)
            std[groups == group] = np.sqrt(np.exp(2 * log_std) + between_clips)
        return torch.from_numpy(mean)[:, None], torch.from_numpy(std)[:, None]

    def _indicators(self, conditions: Sequence[Condition]) -> NDArray[np.float64]:
        words = np.zeros((len(conditions), len(self._vocabulary)))
        np.put_along_axis(words, self._vocabulary.encode(conditions), 1, axis=1)
        return words
