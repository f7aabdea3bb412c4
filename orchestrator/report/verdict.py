"""How much better than what: the differences in Omega that open a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from fusion.labelled import LabelledScores
from fusion.resampling import compare
from orchestrator.report.collect import System, labelled
from scoring.errors import InputError
from scoring.table import join

_OVER = {"best_single": "the best single configuration", "uniform": "uniform weights"}


def differences(best: System, systems: Sequence[System]) -> list[dict[str, Any]]:
    """How much Omega a system has beyond the baseline, the others and the simple methods, on the same clips.

    Each has `gain` in per cent, 95 % intervals of it over `clips` and over `machines`, None of a single machine, `over`
    what it is, and the `meaning` of these. Clips are scored with weights that were chosen without their machine.
    """
    others = {f"system {system.result['system']}": system.held_out for system in systems if system is not best}
    if best.baseline is not None:
        others = {f"the {best.result['baseline']['name']}": labelled(best.baseline), **others}
    gains = []
    for over, table in others.items():
        if best.held_out is None or table is None:
            continue
        try:
            _, values = join({"best": best.held_out, over: table}, ("best", over), "score")
        except InputError:  # of other clips
            continue
        scores = LabelledScores.of(("best", over), values, best.held_out)
        gain = asdict(compare(scores, np.random.default_rng(0))[1][over])
        gains.append((over, gain | ({"machines": None} if len(scores.machines) == 1 else {})))
    delivered = best.result["delivered"]
    gains += [(_OVER[method], gain) for method, gain in delivered["gains"].items() if method != delivered["method"]]
    return [{"over": over, "meaning": _meaning(gain), **gain} for over, gain in gains]


def _meaning(gain: dict[str, Any]) -> str:
    """What may be claimed: `better` or `worse` only where neither other clips nor other machines would turn it."""
    for name in ("clips", "machines"):
        if gain[name] and gain[name][0] <= 0 <= gain[name][1]:
            return f"within chance on {'these' if name == 'clips' else 'other'} machines"
    return "better" if gain["gain"] > 0 else "worse"
