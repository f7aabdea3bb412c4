"""All that labelled clips say about a fused system and about every method that could have made it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fusion.complementarity import correlations, marginals
from fusion.hierarchy import Tree, Weights, averaging, configurations_of
from fusion.labelled import LabelledScores
from fusion.methods import METHODS, scale_of
from fusion.resampling import Comparison, compare
from fusion.scales import CALIBRATED, combined, from_scale
from fusion.tasks import FOLDS, Found, Problem, Task
from fusion.validation import SINGLE, UNIFORM, Candidate, Estimates, Machines
from scoring.bootstrap import Interval
from scoring.metrics import Metrics, harmonic_mean


@dataclass(frozen=True)
class Choice:
    """One method with the strength of its regularisation that LOMO likes best.

    weights: by table
    in_sample: on the labels that weights and strength were chosen on
    lomo: on machines that had no say in weights or strength
    clips: Omega in per cent on clips, of the same machines, that had no say in the weights
    fixed: LOMO Omega in per cent with this strength, whoever is left out
    gain, gain_error: of that beyond the simple method, and its standard error over machines: by
        these it was judged whether to deliver the method
    """

    strength: str
    weights: dict[str, float]
    in_sample: Metrics
    lomo: Metrics | None
    clips: float
    fixed: float | None
    gain: float | None
    gain_error: float | None


@dataclass(frozen=True)
class Validation:
    """What is known of the delivered system from labelled clips.

    in_sample: on the labels that everything was chosen on
    lomo: on machines that had no say in method, strength or weights: what to expect of an unheard machine
    held_out: scores (rows,) of the labelled clips by the weights chosen without their machine; None if there is no LOMO
    interval: of LOMO Omega, over resampled clips
    clips: Omega in per cent on clips, of the same machines, that had no say in the weights
    gains: of LOMO Omega over the best single configuration and over uniform weights
    methods: every method that was tried
    names: the configurations, as `sub-system/configuration`
    correlation: of their scores
    marginal: LOMO Omega lost without each configuration
    """

    in_sample: Metrics
    lomo: Metrics | None
    held_out: NDArray[np.float64] | None
    interval: Interval | None
    clips: float
    gains: dict[str, Comparison]
    methods: dict[str, Choice]
    names: tuple[str, ...]
    correlation: NDArray[np.float64]
    marginal: dict[str, float | None]


class Evidence:
    """The searches' results on the clips they are judged on.

    Parameters
    ----------
    tables: scores of the T tables on a scale
    tree: the system
    problem, found: what was searched, and what every task found
    """

    def __init__(
        self,
        tables: Callable[[str], LabelledScores],
        tree: Tree,
        problem: Problem,
        results: Mapping[Task, Found],
    ) -> None:
        self._problem, self._found = problem, results
        self._names = tables(CALIBRATED).names
        self._averages = averaging(tree, self._names)
        self._pools = lru_cache(maxsize=2)(lambda scale: configurations_of(tables(scale), tree))
        by_machines = {task.left_out: result for task, result in results.items() if task.fold is None}
        self.estimates = Estimates(self._pools, by_machines)

    def validation(self) -> Validation:
        """Everything about the delivered system."""
        estimates, pool = self.estimates, self._problem.configurations
        delivered, lomo = estimates.choose(), estimates.lomo(estimates.choose)
        # Where no machine can be left out, weights are judged on the machines that they were chosen on.
        chosen = {
            m: estimates.weights(*self._without(m)) if lomo else estimates.weights(delivered) for m in pool.machines
        }
        held_out = self._held_out(estimates.choose) if lomo else None
        interval, gains = (None, {}) if held_out is None else self._bootstrap(held_out)
        return Validation(
            in_sample=estimates.in_sample(delivered),
            lomo=lomo,
            held_out=held_out,
            interval=interval,
            clips=self._clip_omega(delivered),
            gains=gains,
            methods={method: self._choice(method) for method in METHODS},
            names=pool.names,
            correlation=correlations(pool),
            marginal=dict(zip(pool.names, marginals(self._pools(scale_of(*delivered)), chosen), strict=True)),
        )

    def by_table(self, weights: Weights) -> dict[str, float]:
        """Weights of the tables from those of the configurations."""
        return dict(zip(self._names, (weights @ self._averages).tolist(), strict=True))

    def _without(self, machine: str) -> tuple[Candidate, Machines]:
        left_out = frozenset([machine])
        return self.estimates.choose(left_out), left_out

    def _choice(self, method: str) -> Choice:
        estimates = self.estimates
        candidate = estimates.strength(method)
        gain, error = estimates.gain(candidate)
        return Choice(
            strength=candidate[1],
            weights=self.by_table(estimates.weights(candidate)),
            in_sample=estimates.in_sample(candidate),
            lomo=estimates.lomo(lambda left_out: estimates.strength(method, left_out)),
            clips=self._clip_omega(candidate),
            fixed=fixed.omega if (fixed := estimates.lomo(lambda _: candidate)) else None,
            gain=gain,
            gain_error=error,
        )

    def _clip_omega(self, candidate: Candidate) -> float:
        """Omega where each clip is scored with weights found without its fold."""
        method, strength = candidate
        pool = self._pools(scale_of(method, strength))
        weights = np.stack([self._found[Task(fold=fold)][method][strength] for fold in range(FOLDS)])
        by_fold = combined(pool.scale, weights, pool.values)
        fused = np.take_along_axis(by_fold, self._problem.folds[None], axis=0)[0]
        return float(harmonic_mean(pool.cells.values(fused)))

    def _held_out(self, choose: Callable[[Machines], Candidate]) -> NDArray[np.float64]:
        """Scores (rows,) of each machine's clips with what is chosen without it."""
        pool = self._problem.configurations
        fused = np.empty(pool.values.shape[1])
        for machine in pool.machines:
            left_out = frozenset([machine])
            candidate = choose(left_out)
            rows = np.unique(pool.cells.select([machine]).rows)
            scale = scale_of(*candidate)
            weights = self.estimates.weights(candidate, left_out)
            fused[rows] = from_scale(scale, combined(scale, weights, self._pools(scale).values[:, rows]))
        return fused

    def _bootstrap(self, delivered: NDArray[np.float64]) -> tuple[Interval, dict[str, Comparison]]:
        simple = {candidate[0]: self._held_out(lambda _, c=candidate: c) for candidate in (SINGLE, UNIFORM)}  # type: ignore[misc]
        systems = np.stack([delivered, *simple.values()])
        against = {name: i for i, name in enumerate(simple, start=1)}
        rng = np.random.default_rng(self._problem.seed)
        return compare(self._problem.configurations.with_values(systems), against, rng)
