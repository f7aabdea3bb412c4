"""Fuse score tables: choose weights, estimate honestly what they are worth, apply them.

Every method is run on all development machines, and again without each of them and each pair. What is delivered is
chosen by what it reaches on held-out machines, and so is the figure it is given, see `fusion.validation`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pyarrow as pa

from fusion.evidence import Choice, Evidence, Validation
from fusion.hierarchy import Tree, averaging, by_subsystem, configurations_of, parts_of, tables_of, uniform_weights
from fusion.joined import Joined, apply_weights
from fusion.labelled import LabelledScores, labelled_rows
from fusion.methods import scale_of
from fusion.scales import CALIBRATED, on_scale
from fusion.tasks import Problem, Runner, clip_folds, run_here, search_all
from fusion.validation import UNIFORM
from scoring.metrics import has_labels
from scoring.table import conform, is_transductive, with_scores

__all__ = ["Choice", "Fusion", "Runner", "Validation", "apply_weights", "fuse"]

# Raised by hand when the same tables come to give other weights, or a result gets other fields; every system is fused
# once more.
FUSION_VERSION = 4

WHY = {
    "best_single": "on held-out machines no simple method beats it, and no search does beyond noise",
    "uniform": "on held-out machines it beats the best single configuration, and no search beats it beyond noise",
    "minimum": "on held-out machines it beats the best single configuration and uniform weights, and no search "
    "beats it beyond noise",
}
WHY_BEST = "on held-out machines it beats uniform weights and the best single configuration beyond noise, and by most"
WHY_UNTESTED = "fewer than two labelled machines: no choice can be tested on a held-out one"


@dataclass(frozen=True)
class Fusion:
    """A fused system.

    method, strength: what chose the weights
    why: the reason, for people
    weights: by table; `apply_weights` takes them to other data
    scale: of the scores that they apply to, see `fusion.scales`
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
    scale: str
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

    Raises
    ------
    InputError
        If a table of the system is absent or the tables do not have the same clips.
    """
    joined = Joined.read(tables, tables_of(system), ("domain", "condition"))
    labelled = _labelled(joined)
    if labelled is None:
        validation, (method, strength), weights = None, UNIFORM, uniform_weights(parts_of(system))
    else:
        evidence = _search(labelled, system, seed, runner)
        method, strength = evidence.estimates.choose()
        weights = evidence.estimates.weights((method, strength))
        validation = evidence.validation()
    scale, by_table = scale_of(method, strength), weights @ averaging(system, joined.names)
    return Fusion(
        method=method,
        strength=strength,
        why=_why(method, validation),
        weights=dict(zip(joined.names, by_table.tolist(), strict=True)),
        scale=scale,
        configuration_weights=by_subsystem(system, weights),
        validation=validation,
        table=joined.fused(by_table, scale, metadata or {}),
        held_out=_held_out(joined, validation, metadata or {}),
    )


def _labelled(joined: Joined) -> Callable[[str], LabelledScores] | None:
    """The tables' scores on labelled clips on any scale, if a machine has both normals and anomalies."""
    if not has_labels(joined.first):
        return None
    plain = LabelledScores.of(joined.names, joined.values, joined.first)
    if not plain.machines:
        return None

    def on(scale: str) -> LabelledScores:
        if scale == CALIBRATED:
            return plain
        return LabelledScores.of(joined.names, on_scale(scale, joined.clips, joined.values), joined.first, scale)

    return on


def _held_out(joined: Joined, validation: Validation | None, metadata: Mapping[str, str]) -> pa.Table | None:
    if validation is None or validation.held_out is None:
        return None
    clips = joined.first.replace_schema_metadata(joined.clips.schema.metadata).take(labelled_rows(joined.first))
    return conform(with_scores(clips, validation.held_out, None, {**metadata, "weights": "chosen without the machine"}))


def _search(tables: Callable[[str], LabelledScores], tree: Tree, seed: int, runner: Runner) -> Evidence:
    scores = tables(CALIBRATED)
    problem = Problem(configurations_of(scores, tree), parts_of(tree), clip_folds(scores, seed), seed)
    return Evidence(tables, tree, problem, search_all(problem, runner))


def _why(method: str, validation: Validation | None) -> str:
    return WHY_UNTESTED if validation is None or validation.lomo is None else WHY.get(method, WHY_BEST)
