"""What `result.json` says of a fusion: the form that is saved, printed, logged and reported."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fusion.hierarchy import Tree, by_subsystem
from fusion.search import Choice, Fusion, Validation
from scoring.metrics import Metrics


def describe(fusion: Fusion, tree: Tree) -> dict[str, Any]:
    """A fusion as JSON; Omega in per cent, None where nothing is known. `docs/fusion.md` explains the fields."""
    v = fusion.validation
    return {
        "transductive": fusion.transductive,
        "delivered": {
            "method": fusion.method,
            "strength": fusion.strength,
            "scale": fusion.scale,
            "why": fusion.why,
            "weights": fusion.configuration_weights,
            "table_weights": fusion.weights,
            "in_sample": _omega(v.in_sample if v else None),
            "lomo": _omega(v.lomo if v else None),
            "clips": v.clips if v else None,
            "ci": v.interval if v else None,
            "gains": {name: asdict(comparison) for name, comparison in v.gains.items()} if v else {},
        },
        "methods": {name: _choice(choice) for name, choice in v.methods.items()} if v else {},
        "machines": {"in_sample": _machines(v.in_sample if v else None), "lomo": _machines(v.lomo if v else None)},
        "complementarity": _complementarity(v) if v else None,
        "pruned": asdict(v.pruned) if v else None,
        "development_diagnosis": _diagnosis(v, tree) if v else None,
    }


def summary(result: dict[str, Any]) -> tuple[str, list[tuple[str, float | None, float | None]]]:
    """A line on what is delivered, and rows of name, in-sample and LOMO Omega: what a command prints."""
    delivered = result["delivered"]
    name = " ".join(filter(None, [delivered["method"], delivered["strength"]]))
    mark = "TRANSDUCTIVE, normalised by test clips: " if result["transductive"] else ""
    rows = [(method, values["in_sample"], values["lomo"]) for method, values in result["methods"].items()]
    rows.append(("delivered", delivered["in_sample"], delivered["lomo"]))
    return f"{mark}{name} delivered ({delivered['why']})", rows


def _choice(choice: Choice) -> dict[str, Any]:
    return {
        "strength": choice.strength,
        "in_sample": choice.in_sample.omega,
        "lomo": _omega(choice.lomo),
        "clips": choice.clips,
        "gain": choice.gain,
        "gain_error": choice.gain_error,
    }


def _complementarity(v: Validation) -> dict[str, Any]:
    return {
        "configurations": v.names,
        "correlation": v.correlation.tolist(),
        "winners": {machine: {"configuration": name, "hmean": hmean} for machine, (name, hmean) in v.winners.items()},
        "marginal": v.marginal,
        "marginal_uniform": v.marginal_uniform,
    }


def _diagnosis(v: Validation, tree: Tree) -> dict[str, Any]:
    return {
        "note": "chosen and measured on the same labels; of no use on other machines",
        "in_sample_optimum": v.diagnosis.optimum,
        "per_machine": v.diagnosis.per_machine,
        "per_machine_weights": {m: by_subsystem(tree, w) for m, w in v.diagnosis.machine_weights.items()},
    }


def _omega(metrics: Metrics | None) -> float | None:
    return metrics.omega if metrics else None


def _machines(metrics: Metrics | None) -> dict[str, Any] | None:
    return {name: asdict(values) for name, values in metrics.machines.items()} if metrics else None
