"""Is the report that lies in a run folder still the one of its results?"""

from __future__ import annotations

import hashlib
import logging
from importlib.metadata import version
from pathlib import Path

from orchestrator.ledger.folders import BRANCHES, RECORD, RESULT, SYSTEMS

log = logging.getLogger(__name__)

REPORT = "report.html"


def refresh_report(out: Path, dataset: str) -> None:
    """Write the report anew unless it is of the results that are in the run folder."""
    current = stamp(out, dataset)
    try:
        with (out / REPORT).open(encoding="utf-8") as file:
            fresh = current in file.read(1000)
    except (OSError, ValueError):
        fresh = False
    if not fresh:
        from orchestrator.report.page import write_report  # draws, which takes packages that load for a second

        log.info("writing %s", out / REPORT)
        write_report(out, dataset)


def stamp(out: Path, dataset: str | None) -> str:
    """Stands for the results of a run folder, and for the version that draws them."""
    files = [*out.glob(RESULT), *out.glob(f"{SYSTEMS}/*/{RESULT}"), *out.glob(f"{BRANCHES}/*/{RECORD}")]
    contents = b"".join(path.read_bytes() for path in sorted(files))
    return hashlib.sha256(f"{version('tutti-asd')} {dataset}".encode() + contents).hexdigest()[:16]
