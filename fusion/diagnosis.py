"""What the development labels could be made to say: upper bounds that no weights for unheard machines reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fusion.evolution import evolution
from fusion.hierarchy import Parts, Weights, choose_weights
from fusion.labelled import LabelledScores
from fusion.methods import greedy
from scoring.metrics import harmonic_mean

GENERATIONS = 200


@dataclass(frozen=True)
class Diagnosis:
    """Figures of the development set alone, in per cent, and never an estimate of anything else.

    optimum: the highest Omega found for any weights of the tables, chosen and measured on the same labels
    per_machine: the same for weights (K,) of configurations that each machine has for itself
    machine_weights: those weights, which no machine of an evaluation set could use
    """

    optimum: float
    per_machine: float
    machine_weights: dict[str, Weights]


def diagnose(
    tables: LabelledScores, configurations: LabelledScores, parts: Parts, starts: Sequence[Weights], seed: int
) -> Diagnosis:
    """Search freely, on all labels at once; `starts` are weights of the tables (T,) that are known to be good."""
    rng = np.random.default_rng(seed)
    flat = [slice(0, len(tables.names))]
    free = evolution(tables, flat, starts, rng, GENERATIONS)
    own, cells = {}, []
    for machine in configurations.machines:
        alone = configurations.only([machine])
        own[machine] = choose_weights(alone, parts, greedy, rng)
        cells.append(alone.objective.cells(own[machine]))
    return Diagnosis(float(tables.omega(free)), float(harmonic_mean(np.concatenate(cells, axis=1))), own)
