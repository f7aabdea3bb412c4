"""Detectors: distance of an embedding to the normal ones of each domain, for one machine and section.

The domain of a test clip is not known, so a detector gives one distance for each domain. How these become one score is
the same for all of them (`scoring.banks`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Domains = NDArray[np.int64]
Arrays = Mapping[str, NDArray[Any]]


class Detector(Protocol):
    """What scoring needs of a detector."""

    def fit(self, X: NDArray[np.floating], domain: Domains) -> Self:
        """Learn from embeddings X (n, …) of normal clips, and the domain of each (n,), from 0 on."""
        ...

    def distances(self, X: NDArray[np.floating]) -> Array:
        """Distance of embeddings X (m, …) to each domain's normals: (m, domains)."""
        ...

    def held_out_distances(self) -> Array:
        """`distances` (n, domains) of the clips of `fit`, each as if it had not been among them.

        NaN where that leaves nothing of a domain.
        """
        ...

    def arrays(self) -> Arrays:
        """What `distances` needs of the fit, by name."""
        ...

    def restore(self, arrays: Arrays) -> Self:
        """Take over the `arrays` of a fitted detector, whose `distances` this one then gives."""
        ...


class DomainBanks:
    """A detector that has an estimator for each domain by itself.

    Parameters
    ----------
    estimator: makes an unfitted one for each domain, with scikit-learn's `fit` and `score_samples`, lower being more
        abnormal. If it knows the scores of its own clips without themselves, it has `held_out_score_samples` for
        three or more, and if a fit takes time, `arrays` and `restore` as a `Detector` has
    """

    def __init__(self, estimator: Callable[[], Any]) -> None:
        self.estimator = estimator

    def fit(self, X: NDArray[np.floating], domain: Domains) -> Self:
        """See `Detector.fit`."""
        self._X, self._domain = X, domain
        self._fitted = [self.estimator().fit(X[domain == d]) for d in range(domain.max() + 1)]
        return self

    def distances(self, X: NDArray[np.floating]) -> Array:
        """See `Detector.distances`."""
        return np.stack([-estimator.score_samples(X) for estimator in self._fitted], axis=1)

    def held_out_distances(self) -> Array:
        """See `Detector.held_out_distances`."""
        distances = np.empty((len(self._X), len(self._fitted)))
        for d, estimator in enumerate(self._fitted):
            own = self._domain == d
            distances[own, d] = -self._held_out_scores(estimator, self._X[own])
            if not own.all():
                distances[~own, d] = -estimator.score_samples(self._X[~own])
        return distances

    def _held_out_scores(self, fitted: Any, X: NDArray[np.floating]) -> Array:
        """`score_samples` (n,) of the clips X (n, …) that one is fitted to, each by one fitted to all others."""
        if len(X) < 2:
            return np.full(len(X), np.nan)
        if len(X) > 2 and hasattr(fitted, "held_out_score_samples"):
            scores: Array = fitted.held_out_score_samples()
            return scores
        others = (self.estimator().fit(np.delete(X, i, axis=0)) for i in range(len(X)))
        return np.concatenate([estimator.score_samples(X[i : i + 1]) for i, estimator in enumerate(others)])

    def arrays(self) -> Arrays:
        """See `Detector.arrays`; of an estimator that has none, the clips that it is fitted to."""
        own = [self._X[self._domain == d] for d in range(len(self._fitted))]
        pairs = zip(self._fitted, own, strict=True)
        return numbered(e.arrays() if hasattr(e, "arrays") else {"X": X} for e, X in pairs)

    def restore(self, arrays: Arrays) -> Self:
        """See `Detector.restore`."""
        pairs = [(self.estimator(), own) for own in parts_of(arrays)]
        self._fitted = [e.restore(own) if hasattr(e, "restore") else e.fit(own["X"]) for e, own in pairs]
        return self


def numbered(parts: Iterable[Arrays]) -> Arrays:
    """The arrays of several parts in one mapping."""
    return {f"{i}.{name}": array for i, part in enumerate(parts) for name, array in part.items()}


def parts_of(arrays: Arrays) -> list[Arrays]:
    """The parts that `numbered` has put in one mapping."""
    parts: dict[int, dict[str, NDArray[Any]]] = {}
    for key, array in arrays.items():
        number, _, name = key.partition(".")
        parts.setdefault(int(number), {})[name] = array
    return [parts[number] for number in sorted(parts)]
