"""What others have published of the same systems on the same data, beside what was measured here.

Both tables are of the development set of DCASE 2026 Task 2, and stand in a report only where that is what was scored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from orchestrator.report.collect import System

# Harmonic mean of each machine, and Omega, in per cent, of S1 to S4: Table 1 of the AITHU technical report, DCASE 2026.
TABLE_1 = {
    "bearingEmu": (58.80, 60.65, 63.44, 61.08),
    "fan": (67.59, 67.59, 66.85, 66.43),
    "gearboxEmu": (72.06, 75.91, 75.87, 77.29),
    "sliderEmu": (55.42, 57.74, 58.97, 57.44),
    "ToyCar": (66.26, 69.73, 75.05, 70.13),
    "ToyCarEmu": (67.90, 69.51, 70.38, 81.08),
    "valveEmu": (63.41, 60.89, 70.17, 66.54),
    "Omega": (64.04, 65.47, 68.20, 67.70),
}
OMEGA = "Omega"


@dataclass(frozen=True)
class Row:
    """One figure in per cent: as published, and as measured in two ways or one; None where it was not measured."""

    name: str
    published: float
    measured: float | None
    delivered: float | None = None

    @property
    def deviation(self) -> float | None:
        """Of what was measured from what was published."""
        return None if self.measured is None else self.measured - self.published


def is_development_set(system: System) -> bool:
    """Whether a system was measured on the machines of the 2026 development set, and on no others."""
    return set(system.result["machines"]["in_sample"] or {}) == TABLE_1.keys() - {OMEGA}


def expected(system: System) -> list[Row]:
    """Omega of each configuration whose `expected` the system file states, the mean over its seeds."""
    if not is_development_set(system):
        return []
    rows = []
    for subsystem, configurations in system.result.get("spec", {}).get("subsystems", {}).items():
        for name, configuration in configurations.items():
            if (published := configuration.get("expected")) is not None:
                seeds = {f"{subsystem}/{name}/{seed}" for seed in configuration["seeds"]}
                omegas = [b["omega"] for b in system.result["branches"] if b["branch"] in seeds]
                rows.append(Row(f"{subsystem}/{name}", published, float(np.mean(omegas)) if omegas else None))
    return rows


def against_the_report(system: System) -> list[Row]:
    """Table 1 of the report beside TPE in-sample, which is what it states, and beside what is delivered, LOMO."""
    number = {f"s{i}": i - 1 for i in range(1, 5)}.get(system.name)
    if number is None or not is_development_set(system):
        return []
    tpe = system.result["methods"].get("tpe", {})
    delivered, machines = system.result["delivered"], system.result["machines"]["lomo"] or {}
    measured = {**{m: v["hmean"] for m, v in tpe.get("machines", {}).items()}, OMEGA: tpe.get("in_sample")}
    held_out = {**{m: v["hmean"] for m, v in machines.items()}, OMEGA: delivered["lomo"]}
    return [Row(name, values[number], measured.get(name), held_out.get(name)) for name, values in TABLE_1.items()]
