"""Checks of a meta file: its form, what is still to be filled in, and the arithmetic of its results."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import yaml
from pydantic import ValidationError

from orchestrator.submission.files import PLACEHOLDER, PLACEHOLDER_LABEL
from orchestrator.submission.findings import Findings, some
from orchestrator.submission.schema import Meta
from scoring.metrics import CELLS, MAX_FPR, harmonic_mean

# McClish's standardisation of an empty area: no ranking has less.
LEAST_PAUC = 50 * (1 - MAX_FPR / (2 - MAX_FPR))
_UNFILLED = re.compile(rf"{PLACEHOLDER}|TODO|TBD|FIXME|x{{3,}}|\?+", re.IGNORECASE)
_SUMMARIES = (
    "overall",
    "total",
    "all",
    "average",
    "mean",
    "arithmetic_mean",
    "harmonic_mean",
    "hmean",
    "omega",
    "official_score",
)

Results = dict[str, dict[str, float]]


@dataclass
class Stated:
    """What a meta file says.

    results: of each machine, in per cent, as far as they are in order
    rounding: how far a right value may be from the one that is stated, in per cent
    """

    label: str | None = None
    results: Results = field(default_factory=dict)
    rounding: float = 0.0


def read_meta(path: str, content: bytes, findings: Findings) -> Stated:
    """The label and the results that a meta file states; what is wrong is a finding."""
    raw = _read_yaml(path, content, findings)
    if raw is None:
        return Stated()
    _check_filled(path, raw, findings)
    _check_form(path, raw, findings)
    _check_corresponding(path, raw, findings)
    label, results = _at(raw, "submission", "label"), _at(raw, "results", "development_dataset")
    stated = _check_results(path, results, findings) if isinstance(results, dict) else Stated()
    stated.label = label if isinstance(label, str) else None
    return stated


def _read_yaml(path: str, content: bytes, findings: Findings) -> dict[str, Any] | None:
    """The mapping in a meta file, which may be anyone's."""
    try:
        raw = yaml.safe_load(content.decode())
        deque(_leaves(raw), maxlen=0)  # an alias of itself has no end
    except UnicodeDecodeError as error:
        findings.error(path, f"not UTF-8 text ({error.reason} at byte {error.start})")
    except (yaml.YAMLError, ValueError) as error:
        findings.error(path, f"not YAML: {error}")
    except RecursionError:
        findings.error(path, "nested too deeply to be a meta file")
    else:
        if isinstance(raw, dict):
            return raw
        findings.error(path, "not a mapping with the keys submission, system, results")
    return None


def _at(raw: Any, *keys: str) -> Any:
    for key in keys:
        raw = raw.get(key) if isinstance(raw, dict) else None
    return raw


def _check_filled(path: str, raw: dict[str, Any], findings: Findings) -> None:
    for key, value in _leaves(raw):
        if isinstance(value, str) and (_UNFILLED.fullmatch(value.strip()) or value.startswith(PLACEHOLDER_LABEL)):
            findings.error(path, f"{key}: still to be filled in (it is {value!r})")


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Values with their keys."""
    if isinstance(value, (dict, list)) and value:
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def _check_form(path: str, raw: dict[str, Any], findings: Findings) -> None:
    try:
        Meta.model_validate(raw)
    except ValidationError as error:
        mistakes: dict[str, str] = {}
        for fault in error.errors(include_url=False):
            # The names of a union's members are of no use to the reader.
            key = ".".join(str(step) for step in fault["loc"] if step not in ("int", "float", "str"))
            missing = fault["type"] == "missing"
            text = fault["msg"].removeprefix("Value error, ")
            mistakes.setdefault(key, "missing" if missing else f"{text} (it is {str(fault['input'])[:60]!r})")
        for key, text in mistakes.items():
            findings.error(path, f"{key}: {text}")


def _check_corresponding(path: str, raw: dict[str, Any], findings: Findings) -> None:
    authors = _at(raw, "submission", "authors")
    if isinstance(authors, list) and authors:
        count = sum(_at(author, "corresponding") is True for author in authors)
        if count != 1:
            findings.warning(path, f"submission.authors: {count} of them corresponding; there should be one")


def _check_results(path: str, stated: dict[str, Any], findings: Findings) -> Stated:
    """Range and arithmetic of the stated values; what is right comes back in per cent."""
    key = "results.development_dataset"
    machines = {str(name): value for name, value in stated.items() if str(name).lower() not in _SUMMARIES}
    numbers = [value for _, value in _leaves(stated) if _is_number(value)]
    scale = 100.0 if numbers and max(numbers) <= 1 else 1.0
    results: Results = {}
    for machine, values in machines.items():
        if isinstance(values, dict) and values and all(isinstance(inner, dict) for inner in values.values()):
            sections = [_cells(path, f"{key}.{machine}.{s}", inner, scale, findings) for s, inner in values.items()]
            results[machine] = {
                c: _mean([s[c] for s in sections if c in s]) for c in CELLS if any(c in s for s in sections)
            }
        else:
            results[machine] = _cells(path, f"{key}.{machine}", values, scale, findings)
    tolerance = _tolerance(numbers, scale)
    for name, machine in machines.items():
        _check_summaries(
            path, f"{key}.{name}", _at_summaries(machine), {name: results[name]}, scale, tolerance, findings
        )
    _check_summaries(path, key, _at_summaries(stated), results, scale, tolerance, findings)
    return Stated(results=results, rounding=tolerance)


def _is_number(value: Any) -> bool:
    """A float, or an integer that one can hold."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**53)


def _cells(path: str, location: str, values: Any, scale: float, findings: Findings) -> dict[str, float]:
    """The three cells of a machine or section, in per cent."""
    if not isinstance(values, dict):
        findings.error(path, f"{location}: not a mapping with {', '.join(CELLS)} (it is {str(values)[:40]!r})")
        return {}
    cells = {}
    for cell in CELLS:
        value = values.get(cell)
        if cell not in values:
            findings.error(path, f"{location}.{cell}: missing")
        elif value is None:
            findings.warning(path, f"{location}.{cell}: not stated")
        elif not _is_number(value) or not np.isfinite(value):
            findings.error(path, f"{location}.{cell}: not a number (it is {value!r})")
        elif not 0 <= value * scale <= 100:
            findings.error(path, f"{location}.{cell}: {value} is out of range; values are per cent, from 0 to 100")
        elif scale == 1 and 0 < value <= 1:  # 0.00 is a pAUC in some published results
            findings.error(path, f"{location}.{cell}: {value} is a fraction among values in per cent")
        else:
            cells[cell] = value * scale
            if cell == "pauc" and cells[cell] < LEAST_PAUC - 0.01:
                findings.warning(
                    path, f"{location}.pauc: {value} is below {LEAST_PAUC:.2f} %, the least of a standardised pAUC"
                )
    return cells


def _tolerance(numbers: list[float], scale: float) -> float:
    """What rounding can do: a unit of the last digit that is given anywhere, in per cent."""
    digits = max((len(repr(float(n)).partition(".")[2]) for n in numbers if "e" not in repr(float(n))), default=2)
    return max(scale * 10.0**-digits, 0.005)


def _at_summaries(value: Any) -> dict[str, Any]:
    return {k: v for k, v in value.items() if str(k).lower() in _SUMMARIES} if isinstance(value, dict) else {}


def _check_summaries(
    path: str,
    location: str,
    stated: Mapping[str, Any],
    machines: Results,
    scale: float,
    tolerance: float,
    findings: Findings,
) -> None:
    """A stated mean must be the harmonic or the arithmetic mean of the stated cells."""
    for name, value in stated.items():
        parts = {cell: value.get(cell) for cell in CELLS} if isinstance(value, dict) else {None: value}
        for part, given in parts.items():
            cells = [v for cs in machines.values() for cell, v in cs.items() if part in (None, cell)]
            if given is None or not _is_number(given) or not cells:
                continue
            means = _means(str(name).lower(), cells)
            if not any(abs(given * scale - mean) <= tolerance for mean in means.values()):
                expected = ", ".join(f"{kind} mean {mean / scale:.6g}" for kind, mean in means.items())
                key = f"{location}.{name}.{part}" if part else f"{location}.{name}"
                findings.error(path, f"{key}: {given} does not follow from the stated values ({expected})")


def _means(name: str, cells: list[float]) -> dict[str, float]:
    means = {"harmonic": _mean(cells), "arithmetic": float(np.mean(cells))}
    if name in ("harmonic_mean", "hmean", "omega", "official_score"):
        del means["arithmetic"]
    elif name == "arithmetic_mean":
        del means["harmonic"]
    return means


def _mean(values: list[float]) -> float:
    return float(harmonic_mean(np.array(values)))


def check_against_scores(path: str, stated: Stated, computed: Results, findings: Findings) -> None:
    """What is stated must be what the scores in the package give on labelled clips, in per cent."""
    tolerance = max(stated.rounding / 2, 0.05) + 0.005
    for machine, cells in computed.items():
        location = f"results.development_dataset.{machine}"
        if machine not in stated.results:
            findings.error(path, f"{location}: missing; its scores are in the package")
            continue
        given = stated.results[machine]
        wrong = {c: v for c, v in cells.items() if c in given and abs(given[c] - v) > tolerance}
        if wrong:
            differences = some(f"{cell} {given[cell]:.2f} instead of {value:.2f}" for cell, value in wrong.items())
            findings.error(path, f"{location}: not what the scores give: {differences}")
