"""What weights are worth on machines that had no say in them, and which method is therefore delivered.

Every search has been repeated without each machine and without each pair. A candidate (a method and a strength of its
regularisation) is judged on each machine with the weights found without it: leave one machine out, LOMO. Above a dozen
machines it is a group of machines that is left out, see `fusion.tasks.groups_of`. The best
of several estimates flatters itself, so the figure given to a user repeats the choice too: for each machine,
strength and method are chosen by LOMO among the others alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from fusion.hierarchy import Weights
from fusion.labelled import LabelledScores
from fusion.methods import METHODS
from fusion.scales import Scale
from fusion.tasks import Found, Machines, groups_of
from scoring.metrics import Metrics, harmonic_mean, metrics_of_cells

# A method and a strength of its regularisation.
Candidate = tuple[str, str]

UNIFORM: Candidate = ("uniform", "")
# A single configuration costs least to run: of equals it is taken.
SINGLE: Candidate = ("best_single", "")
# What a search gains counts if it is so many standard errors over the machines: one-sided, 5 %.
STANDARD_ERRORS = 1.645
# Between the simple ways half a standard error decides: neither has searched, but a choice that turns on every
# machine left out would cost more than it gains.
TIE = 0.5
# Omega in per cent that further branches have to bring, since each costs its time at inference.
WORTH = 0.1
# Omega in per cent that stands for 0, which has no reciprocal.
SMALLEST = 1e-6
NOBODY: Machines = frozenset()


class Estimates:
    """Estimates from the weights found without certain machines.

    Parameters
    ----------
    pools: the K configurations on each scale
    found: for each set of `fusion.tasks.sets_left_out` what was found without these machines
    """

    def __init__(self, pools: Mapping[Scale, LabelledScores], found: Mapping[Machines, Found]) -> None:
        self._pools, self._found = pools, found
        self.machines = pools["calibrated"].machines
        self._of_group = np.array(pools["calibrated"].cells.machines)
        self.groups = [group for group in groups_of(self.machines) if group in found]
        self._cells = {left_out: self._measured(left_out) for left_out in found}
        self._chosen: dict[Machines, Candidate] = {}
        self._lost: dict[tuple[Candidate, Machines], NDArray[np.float64]] = {}

    def _measured(self, left_out: Machines) -> dict[Candidate, NDArray[np.float64]]:
        """Cells (3, G) of each candidate on the machines that were left out, NaN on others; on all if none was."""
        judged = np.isin(self._of_group, [*(left_out or self.machines)])
        cells: dict[Candidate, NDArray[np.float64]] = {}
        for method, weights in self._found[left_out].items():
            pool = self.pool(method).without(left_out and {*self.machines} - left_out)
            values = np.full((len(weights), 3, len(judged)), np.nan)
            values[..., judged] = pool.measured(np.stack([*weights.values()]))
            cells |= {(method, strength): value for strength, value in zip(weights, values, strict=True)}
        return cells

    def pool(self, method: str) -> LabelledScores:
        """The K configurations on the scale that a method's weights apply to."""
        return self._pools[METHODS[method].scale]

    def weights(self, candidate: Candidate, left_out: Machines = NOBODY) -> Weights:
        """Weights (K,) that a candidate found without some machines."""
        method, strength = candidate
        return self._found[left_out][method][strength]

    def in_sample(self, candidate: Candidate) -> Metrics:
        """Metrics on the labels that the weights were chosen on."""
        return metrics_of_cells(self._of_group.tolist(), self._cells[NOBODY][candidate])

    def held_out(
        self, choose: Callable[[Machines], Candidate], without: Machines = NOBODY
    ) -> NDArray[np.float64] | None:
        """Cells (3, G) of each machine with what is chosen and found without it and without those in `without`.

        None with fewer than two machines; NaN for those in `without`.
        """
        groups = [group for group in self.groups if not group <= without]
        if len(groups) < 2:
            return None
        cells = np.full((3, len(self._of_group)), np.nan)
        for group in groups:
            left_out = without | group
            rows = np.isin(self._of_group, [*group])
            cells[:, rows] = self._cells[left_out][choose(left_out)][:, rows]
        return cells

    def held_out_scores(self, choose: Callable[[Machines], Candidate]) -> NDArray[np.float64]:
        """Scores (rows,) of each machine's labelled clips with what is chosen and found without it."""
        pool = self._pools["calibrated"]
        fused = np.empty(pool.values.shape[1])
        for group in self.groups:
            candidate = choose(group)
            rows = np.unique(pool.cells.select([*group]).rows)
            fused[rows] = self.weights(candidate, group) @ self.pool(candidate[0]).values[:, rows]
        return fused

    def lomo(self, choose: Callable[[Machines], Candidate]) -> Metrics | None:
        """Metrics of what is chosen without each machine, on that machine."""
        cells = self.held_out(choose)
        return None if cells is None else metrics_of_cells(self._of_group.tolist(), cells)

    def strength(self, method: str, without: Machines = NOBODY) -> Candidate:
        """The method with its strength of the highest LOMO Omega; the strongest where there is no LOMO."""

        def omega(candidate: Candidate) -> float:
            cells = self.held_out(lambda _: candidate, without)
            return 0.0 if cells is None else float(harmonic_mean(cells))

        return max(((method, strength) for strength in self._found[without][method]), key=omega)

    def choose(self, without: Machines = NOBODY) -> Candidate:
        """What is delivered: the best by LOMO of all that is worth more than the simple method, or that one itself."""
        if len(self.machines) - len(without) < 2:
            return UNIFORM
        if without not in self._chosen:
            self._chosen[without] = self._choice(without)
        return self._chosen[without]

    def _choice(self, without: Machines) -> Candidate:
        best = simple = self._simple(without)
        best_loss = simple_loss = self._losses(simple, without)
        for candidate in self._cells[without]:
            loss = self._losses(candidate, without)
            if loss.mean() < best_loss.mean() and _worth_it(loss, simple_loss):
                best, best_loss = candidate, loss
        return best

    def _simple(self, without: Machines = NOBODY) -> Candidate:
        """The best single configuration, or uniform weights if these beat it by more than a tie."""
        uniform, single = (self._losses(candidate, without) for candidate in (UNIFORM, SINGLE))
        return UNIFORM if _worth_it(uniform, single, TIE) else SINGLE

    def gain(self, candidate: Candidate) -> tuple[float | None, float | None]:
        """LOMO Omega beyond the simple method's, and its standard error over the machines, in per cent."""
        if len(self.machines) < 2:
            return None, None
        losses, simple = self._losses(candidate, NOBODY), self._losses(self._simple(), NOBODY)
        # Omega is the reciprocal of the mean loss, so a difference in loss is one in Omega times both losses.
        return _gain(losses, simple), float(_standard_error(simple - losses) / (losses.mean() * simple.mean()))

    def _losses(self, candidate: Candidate, without: Machines) -> NDArray[np.float64]:
        """Mean reciprocal cell (M,) of each of at least two machines by LOMO: Omega is the reciprocal of their mean."""
        if (candidate, without) not in self._lost:
            cells = self.held_out(lambda _: candidate, without)
            assert cells is not None
            machines = [machine for machine in self.machines if machine not in without]
            omega = np.array([harmonic_mean(cells[:, self._of_group == machine]) for machine in machines])
            self._lost[candidate, without] = 1 / np.maximum(omega, SMALLEST)
        return self._lost[candidate, without]


def _worth_it(
    loss: NDArray[np.float64], reference: NDArray[np.float64], standard_errors: float = STANDARD_ERRORS
) -> bool:
    """Whether losses (M,) are below those of a reference beyond noise, and by enough."""
    gains = reference - loss
    beyond_noise = gains.mean() > standard_errors * _standard_error(gains)
    return bool(beyond_noise and _gain(loss, reference) >= WORTH)


def _gain(loss: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """Omega of losses (M,) less that of a reference, in per cent."""
    return float(1 / loss.mean() - 1 / reference.mean())


def _standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))
