"""The HTML report of a run, one self-contained file, from the results that lie in its folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from scoring.errors import InputError

REPORT = "report.html"


def write_report(out: Path, dataset: str | None = None) -> Path:
    """Write `out/report.html` from `out/systems/*/result.json` and return its path.

    With a data set's fingerprint, results on other data that lie in the same folder are left out.

    Raises
    ------
    InputError
        If there is no result.
    """
    results = [_read(path) for path in sorted((out / "systems").glob("*/result.json"))]
    results = [result for result in results if dataset in (None, result["dataset"])]
    if not results:
        raise InputError(f"{out}: no results to report; `tutti run` writes them")
    environment = Environment(loader=PackageLoader("orchestrator"), autoescape=True, undefined=StrictUndefined)
    environment.filters["percent"] = _percent
    page = environment.get_template("report.html").render(results=results, machines=_machines(results))
    path = out / REPORT
    temporary = path.with_suffix(".tmp")
    temporary.write_text(page)
    os.replace(temporary, path)
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(path.read_text())
        complete = {"dataset", "delivered", "branches"} <= result.keys()
    except (OSError, ValueError, AttributeError):
        complete = False
    if not complete:
        raise InputError(f"{path}: not a result of `tutti run`; run the system again, which writes it anew")
    return result


def _machines(results: list[dict[str, Any]]) -> list[str]:
    return sorted({m for result in results for branch in result["branches"] for m in branch["machines"]})


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
