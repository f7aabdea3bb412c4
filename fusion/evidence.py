"""All that labelled clips say about a fused system and about every method that could have made it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusion.complementarity import correlations, marginals
from fusion.methods import METHODS
from fusion.resampling import Comparison, compare
from fusion.validation import SINGLE, UNIFORM, Estimates
from scoring.bootstrap import Interval
from scoring.metrics import Metrics


@dataclass(frozen=True)
class Choice:
    """One method with the strength of its regularisation that LOMO likes best.

    in_sample: on the labels that weights and strength were chosen on
    lomo: on machines that had no say in weights or strength
    fixed: LOMO Omega in per cent with this strength, whoever is left out
    gain, gain_error: of that beyond the simple method, and its standard error over machines: by
        these it was judged whether to deliver the method
    """

    strength: str
    in_sample: Metrics
    lomo: Metrics | None
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
    gains: dict[str, Comparison]
    methods: dict[str, Choice]
    names: tuple[str, ...]
    correlation: NDArray[np.float64]
    marginal: dict[str, float | None]


def validation_of(estimates: Estimates, seed: int) -> Validation:
    """Everything about the system that the estimates choose; `seed` is of the resampling."""
    delivered = estimates.choose()
    pool, lomo = estimates.pool(delivered[0]), estimates.lomo(estimates.choose)
    # Where no machine can be left out, weights are judged on the machine that they were chosen on.
    weights = {machine: estimates.weights(delivered) for machine in estimates.machines}
    held_out: NDArray[np.float64] | None = None
    interval: Interval | None = None
    gains: dict[str, Comparison] = {}
    if lomo is not None:
        for group in estimates.groups:
            weights |= dict.fromkeys(group, estimates.weights(estimates.choose(group), group))
        held_out = estimates.held_out_scores(estimates.choose)
        single, uniform = (estimates.held_out_scores(choose) for choose in (lambda _: SINGLE, lambda _: UNIFORM))
        systems = pool.with_values(np.stack([held_out, single, uniform]), ("delivered", "best_single", "uniform"))
        interval, gains = compare(systems, np.random.default_rng(seed))
    return Validation(
        in_sample=estimates.in_sample(delivered),
        lomo=lomo,
        held_out=held_out,
        interval=interval,
        gains=gains,
        methods={method: _choice(estimates, method) for method in METHODS},
        names=pool.names,
        correlation=correlations(estimates.pool("uniform")),
        marginal=dict(zip(pool.names, marginals(pool, weights), strict=True)),
    )


def _choice(estimates: Estimates, method: str) -> Choice:
    candidate = estimates.strength(method)
    gain, error = estimates.gain(candidate)
    return Choice(
        strength=candidate[1],
        in_sample=estimates.in_sample(candidate),
        lomo=estimates.lomo(lambda left_out: estimates.strength(method, left_out)),
        fixed=fixed.omega if (fixed := estimates.lomo(lambda _: candidate)) else None,
        gain=gain,
        gain_error=error,
    )
