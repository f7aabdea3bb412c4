"""The challenge's files: their names, and the scores and decisions of a fused table."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from scoring.atomic import atomic
from scoring.decisions import thresholds
from scoring.table import groups, rows_of

MAX_SYSTEMS = 4
KINDS = SCORE, DECISION = "anomaly_score", "decision_result"
CSV_NAME = re.compile(rf"(?P<kind>{'|'.join(KINDS)})_(?P<machine>.+)_section_(?P<section>\d\d)_test\.csv")
_WORD = r"[^\W_]+(?:-[^\W_]+)*"
# Surname and affiliation of the corresponding author; a system adds its number.
TEAM_LABEL = re.compile(rf"{_WORD}_{_WORD}_task2")
SYSTEM_LABEL = re.compile(rf"{TEAM_LABEL.pattern}_[1-{MAX_SYSTEMS}]")
PLACEHOLDER = "TO BE FILLED IN"
PLACEHOLDER_LABEL = "Surname_Affiliation_task2"


def csv_name(kind: str, machine: str, section: int) -> str:
    """`anomaly_score_fan_section_00_test.csv`."""
    return f"{kind}_{machine}_section_{section:02d}_test.csv"


def challenge_machines(table: pa.Table) -> list[str]:
    """Machines that a package is about: those whose test labels are hidden, or all if none are.

    table: a score table or a clip index
    """
    hidden = pc.and_(pc.equal(table["split"], "test"), pc.is_null(table["condition"]))
    rows = table.filter(hidden)
    return sorted(pc.unique((rows if rows.num_rows else table)["machine"]).to_pylist())


def write_submission(table: pa.Table, folder: Path) -> None:
    """Write scores and decisions of every test clip of a fused table, one pair of files per machine and section.

    `anomaly_score_<machine>_section_<NN>_test.csv` and `decision_result_….csv` have the columns clip and value,
    no header. A clip is decided an anomaly (1) if its score is above the threshold from the training clips.
    Files of machines that the table lacks are removed, last: until then an earlier submission is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    limits = thresholds(table)
    test = table.filter(pc.equal(table["split"], "test"))
    written = set()
    for machine, section, rows in groups(test):
        clip, score = (values[rows] for values in rows_of(test, ["clip", "score"]))
        decision = (score > limits[machine, section]).astype(int)
        for kind, values in ((SCORE, score), (DECISION, decision)):
            path = folder / csv_name(kind, machine, section)
            with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows(zip(clip, values.tolist(), strict=True))
            written.add(path)
    for path in set(folder.glob("*.csv")) - written:
        if CSV_NAME.fullmatch(path.name):
            path.unlink()
