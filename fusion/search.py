"""Fuse score tables: choose weights, estimate honestly what they are worth, apply them.

Every method is run on all development machines, and again without each of them and each pair. What is delivered is
chosen by what it reaches on held-out machines, and so is the figure it is given, see `fusion.validation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from fusion.evidence import Choice, Validation, validation_of
from fusion.hierarchy import Tree, averaging, by_subsystem, configurations_of, parts_of, tables_of, uniform_weights
from fusion.joined import Joined, apply_weights
from fusion.labelled import LabelledScores, labelled_rows
from fusion.methods import METHODS
from fusion.scales import SCALES, Scale, on_scale
from fusion.tasks import Problem, Runner, run_here, search_all
from fusion.validation import UNIFORM, Estimates
from scoring.metrics import has_labels
from scoring.table import conform, is_transductive, with_scores

__all__ = ["Choice", "Fusion", "Runner", "Validation", "apply_weights", "fuse"]

# Raised by hand when the same tables come to give other weights, or a result gets other fields; every system is fused
# once more.
FUSION_VERSION = 7

# How the weights of a fused table were chosen, in its metadata.
WEIGHTS, ON_THESE_LABELS = "weights", "chosen on these labels"

# What a gain has to be to be enough is in `fusion.validation`; a claim to be better is left to intervals.
WHY = {
    "best_single": "on held-out machines no other way gains enough over it",
    "uniform": "on held-out machines they gain enough over the best single configuration, and no search over them",
}
WHY_BEST = (
    "on held-out machines it gains enough over the simple ways, {:.2f} ± {:.2f} with its strength kept, and has the "
    "highest Omega of those that do"
)
WHY_UNTESTED = "fewer than two labelled machines: no choice can be tested on a held-out one, so none is made"


@dataclass(frozen=True)
class Fusion:
    """A fused system.

    method, strength: what chose the weights
    why: the reason, for people
    weights: by table; `apply_weights` takes them to other data
    scale: of the scores that they apply to
    configuration_weights: weight of each configuration, by sub-system
    validation: None without labels
    table: the fused score table
    held_out: the labelled clips, each scored by the weights chosen without its machine, so that its Omega is the LOMO
        Omega; None if there is none
    """

    method: str
    strength: str
    why: str
    weights: dict[str, float]
    scale: Scale
    configuration_weights: dict[str, dict[str, float]]
    validation: Validation | None
    table: pa.Table
    held_out: pa.Table | None

    @property
    def transductive(self) -> bool:
        """Whether statistics of test rows reached the scores."""
        return is_transductive(self.table)


def fuse(
    tables: Mapping[str, pa.Table],
    system: Tree,
    metadata: Mapping[str, str] | None = None,
    seed: int = 0,
    runner: Runner = run_here,
) -> Fusion:
    """Fuse the tables of a system.

    Parameters
    ----------
    tables: score tables by name; all must have the same clips, and calibrated scores
    system: sub-system → configuration → table names of its seeds
    metadata: written into the fused table's schema
    seed: of the searches; the result does not depend on the runner
    runner: where the searches run

    Raises InputError if a table of the system is absent or the tables do not have the same clips.
    """
    joined = Joined.read(tables, tables_of(system), ("domain", "condition"))
    validation, (method, strength), weights = None, UNIFORM, uniform_weights(parts_of(system))
    why = WHY_UNTESTED
    if pools := _pools(joined, system):
        problem = Problem(pools["calibrated"], parts_of(system), seed)
        estimates = Estimates(pools, search_all(problem, runner))
        method, strength = estimates.choose()
        weights = estimates.weights((method, strength))
        validation = validation_of(estimates, seed)
        if validation.lomo is not None:
            why = WHY.get(method) or WHY_BEST.format(*estimates.gain((method, strength)))
    scale, by_table = METHODS[method].scale, weights @ averaging(system, joined.names)
    untested = validation is None or validation.lomo is None
    return Fusion(
        method=method,
        strength=strength,
        why=why,
        weights=dict(zip(joined.names, by_table.tolist(), strict=True)),
        scale=scale,
        configuration_weights=by_subsystem(system, weights),
        validation=validation,
        table=joined.fused(by_table, scale, {**(metadata or {}), **({} if untested else {WEIGHTS: ON_THESE_LABELS})}),
        held_out=_held_out(joined, validation, metadata or {}),
    )


def _pools(joined: Joined, tree: Tree) -> dict[Scale, LabelledScores]:
    """The configurations' scores of labelled clips on each scale; none if no machine has both normals and anomalies."""
    if not has_labels(joined.first) or not len(labelled_rows(joined.first)):
        return {}
    return {
        scale: configurations_of(
            LabelledScores.of(joined.names, on_scale(scale, joined.clips, joined.values), joined.first), tree
        )
        for scale in SCALES
    }


def _held_out(joined: Joined, validation: Validation | None, metadata: Mapping[str, str]) -> pa.Table | None:
    if validation is None or validation.held_out is None:
        return None
    clips = joined.first.take(labelled_rows(joined.first))
    return conform(with_scores(clips, validation.held_out, None, {**metadata, WEIGHTS: "chosen without the machine"}))
