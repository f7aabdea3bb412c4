"""Checks of score and decision tables: rows, numbers, clips, and decisions against scores."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np

from orchestrator.submission.findings import Findings, some

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass
class Pairs:
    """One table: the value of each clip, and the row in which it stands, from 1."""

    path: str
    values: dict[str, float] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)


def read_pairs(path: str, content: bytes, kind: str, findings: Findings) -> Pairs:
    """The rows of a table that are in order; the others are findings, those of one cause in one line."""
    pairs = Pairs(path)
    faults: dict[str, list[tuple[int, str]]] = {}
    for row, cells in _rows(path, content, findings):
        clip, *values = cells
        if fault := _row_fault(row, cells, kind, pairs):
            faults.setdefault(fault, []).append((row, ",".join(cells)))
        else:
            pairs.values[clip], pairs.rows[clip] = float(values[0]), row
    for fault, hits in faults.items():
        others = f" (so too in row {some(row for row, _ in hits[1:])})" if len(hits) > 1 else ""
        findings.error(path, f"row {hits[0][0]}: {fault}: {hits[0][1][:80]!r}{others}")
    if not pairs.values:
        findings.error(path, "no usable rows; there must be one `clip,value` for each test clip")
    return pairs


def _rows(path: str, content: bytes, findings: Findings) -> Iterator[tuple[int, list[str]]]:
    if content.startswith(b"\xef\xbb\xbf"):
        findings.error(path, "row 1: begins with a byte order mark; save as UTF-8 without one")
        content = content[3:]
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        findings.error(path, f"not UTF-8 text ({error.reason} at byte {error.start})")
        return
    lines = text.splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    for row, line in enumerate(lines, 1):
        yield row, _columns(line)


def _columns(line: str) -> list[str]:
    """One line at a time, since a stray quote would swallow those that follow."""
    try:
        return next(csv.reader([line])) or [""]
    except csv.Error:
        return [line]


def _row_fault(row: int, cells: list[str], kind: str, pairs: Pairs) -> str | None:
    if len(cells) != 2:
        return (
            "empty line" if cells == [""] else f"{len(cells)} columns instead of 2, clip and value with a comma between"
        )
    clip, value = cells
    if row == 1 and not clip.lower().endswith(".wav") and not _NUMBER.fullmatch(value.strip()):
        return "a header; the tables have none"
    if not clip.endswith(".wav") or "/" in clip or "\\" in clip or clip != clip.strip():
        return "the first column must be the bare name of a clip, such as section_00_0000.wav"
    if not _NUMBER.fullmatch(value.strip()) or not np.isfinite(float(value)):
        return "the value is not a finite number"
    if kind == "decision_result" and float(value) not in (0, 1):
        return "the decision is neither 0 nor 1"
    if clip in pairs.rows:
        return "the clip stands in an earlier row too"
    return None


def check_clips(pairs: Pairs, expected: Collection[str], source: str, findings: Findings) -> None:
    """The table has each of the clips that `source` names, and no other."""
    missing = [clip for clip in expected if clip not in pairs.values]
    if missing:
        findings.error(
            pairs.path,
            f"{len(pairs.values)} usable rows for {len(expected)} test clips; without {some(missing)} of {source}",
        )
    expected_clips = set(expected)
    unknown = [clip for clip in pairs.values if clip not in expected_clips]
    if unknown:
        findings.error(pairs.path, f"row {pairs.rows[unknown[0]]}: no such test clip in {source}: {some(unknown)}")


def check_scores(scores: Pairs, findings: Findings) -> None:
    """Scores that tell nothing apart are allowed, but hardly meant."""
    if len(scores.values) > 1 and len(set(scores.values.values())) == 1:
        findings.warning(scores.path, f"all scores are {next(iter(scores.values.values())):g}: nothing is told apart")


def check_decisions(scores: Pairs, decisions: Pairs, findings: Findings) -> None:
    """Some threshold on the scores must give exactly these decisions."""
    clips = [clip for clip in decisions.values if clip in scores.values]
    low = [clip for clip in clips if not decisions.values[clip]]
    high = [clip for clip in clips if decisions.values[clip]]
    if not low or not high:
        if clips:
            findings.warning(decisions.path, f"all {len(clips)} clips are decided {int(not low)}")
        return
    top = max(low, key=scores.values.__getitem__)
    bottom = min(high, key=scores.values.__getitem__)
    if scores.values[top] < scores.values[bottom]:
        return
    if max(map(scores.values.__getitem__, high)) < min(map(scores.values.__getitem__, low)):
        findings.error(decisions.path, "wrong way round: every clip decided 1 scores below every clip decided 0")
        return
    both = f"{_told(top, scores, decisions)}, {_told(bottom, scores, decisions)}"
    if scores.values[top] == scores.values[bottom]:
        text = f"a tie at the threshold is decided both ways: {both}; write the scores with all their digits"
    else:
        above = sum(scores.values[clip] >= scores.values[bottom] for clip in low)
        text = f"no threshold on the scores gives these decisions: {both}; {above} clips decided 0 score no less"
    findings.error(decisions.path, text)


def _told(clip: str, scores: Pairs, decisions: Pairs) -> str:
    return f"{clip} (row {decisions.rows[clip]}) is {int(decisions.values[clip])} with score {scores.values[clip]!r}"
