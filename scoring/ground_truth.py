"""Ground truth that is published after the challenge: for figures alone.

A table with such labels carries a mark: it is not written to a file, and no weight search takes it
(`fusion.labelled.LabelledScores`).
"""

from __future__ import annotations

import csv
import logging
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from scoring.clip_names import nfc, parse_clip_name
from scoring.errors import InputError, counted
from scoring.table import KEY, REPORT_ONLY, SCHEMA, metadata_of, rows_of

log = logging.getLogger(__name__)

_FILE = re.compile(r"ground_truth_(?P<machine>.+)_section_(?P<section>\d\d)_test\.csv")
_LIST = "eval_data_list.csv"  # of 2020 and 2021, all machines in one
_DOMAIN, _ATTRIBUTES = "ground_truth_domain", "ground_truth_attributes"
Group = tuple[str, int]


class Label(NamedTuple):
    """What became known of a clip.

    clip: the name under which it was published, whatever it is called in a table
    """

    clip: str
    condition: str
    domain: str | None


@dataclass(frozen=True)
class GroundTruth:
    """Labels by machine and section, and by the clip's published name and the name with its attributes."""

    source: str
    labels: dict[Group, dict[str, Label]]

    def revealed(self, table: pa.Table) -> pa.Table:
        """The rows of `table` whose machine and section have ground truth, with it; marked as for reports only.

        Raises InputError if there is no such machine, or a clip is missing in the table or in the ground truth.
        """
        groups = zip(*rows_of(table, ["machine", "section"]), strict=True)
        table = table.filter(pa.array([group in self.labels for group in groups]))
        if not table.num_rows:
            raise InputError(f"{self.source}: ground truth of {self._described()}; the table has none of these")
        labels: list[Label | None] = []
        seen: dict[Group, set[str]] = defaultdict(set)
        for machine, section, split, clip in zip(*rows_of(table, KEY), strict=True):
            clips = seen[machine, section]
            label = self.labels[machine, section].get(clip) if split == "test" else None
            if label is not None:
                clips.add(label.clip)
            elif split == "test":
                raise InputError(f"{self.source}: no ground truth for {machine}/{clip} (section {section})")
            labels.append(label)
        for (machine, section), clips in seen.items():
            if lost := {label.clip for label in self.labels[machine, section].values()} - clips:
                raise InputError(
                    f"{machine} section {section}: no score for {counted(len(lost), 'clip')} of the ground truth, "
                    f"{min(lost)} among them"
                )
        pairs = zip(labels, table["condition"].to_pylist(), strict=True)
        if changed := sum(label is not None and old not in (None, label.condition) for label, old in pairs):
            told = counted(changed, "label")
            log.warning("%s: %s unlike the table's; the ground truth counts", self.source, told)
        for column in ("condition", "domain"):
            pairs = zip(labels, table[column].to_pylist(), strict=True)
            values = [(label and getattr(label, column)) or old for label, old in pairs]
            table = table.set_column(
                SCHEMA.get_field_index(column), SCHEMA.field(column), pa.array(values, pa.string())
            )
        return table.replace_schema_metadata({**metadata_of(table), REPORT_ONLY: "true"})

    def _described(self) -> str:
        return ", ".join(f"{machine} section {section:02d}" for machine, section in sorted(self.labels))


def read_ground_truth(folder: Path) -> GroundTruth:
    """The organisers' CSV files, anywhere in a folder (that of their evaluator will do).

    `ground_truth_data/ground_truth_<machine>_section_<NN>_test.csv` says 0 or 1 of each clip; files of the same names
    in `ground_truth_domain` say 0 (source) or 1 (target), those in `ground_truth_attributes` the clip's full name.
    `eval_data_list.csv` is the form of 2020 and 2021.

    Raises InputError if there are none, or one cannot be read.
    """
    by_kind: dict[str, dict[Group, Path]] = defaultdict(dict)
    for path in sorted(folder.rglob("ground_truth_*.csv")):
        if match := _FILE.fullmatch(path.name):
            kind = path.parent.name if path.parent.name in (_DOMAIN, _ATTRIBUTES) else "condition"
            other = by_kind[kind].setdefault((nfc(match["machine"]), int(match["section"])), path)
            if other != path:
                raise InputError(f"{path}: the same machine and section as {other}; give the folder of one year")
    labels = {group: _labels(path, group, by_kind) for group, path in by_kind["condition"].items()}
    for path in sorted(folder.rglob(_LIST)):
        for group, label, name in _listed(path):
            labels.setdefault(group, {}).update({label.clip: label, name: label})
    if not labels:
        raise InputError(f"{folder}: no ground_truth_<machine>_section_<NN>_test.csv and no {_LIST} in it")
    return GroundTruth(str(folder), labels)


def _labels(path: Path, group: Group, by_kind: dict[str, dict[Group, Path]]) -> dict[str, Label]:
    domains = _flags(by_kind[_DOMAIN].get(group), ("source", "target"))
    names = dict(_pairs(by_kind[_ATTRIBUTES].get(group)))
    labels: dict[str, Label] = {}
    for clip, condition in _flags(path, ("normal", "anomaly")).items():
        name = f"{names[clip].removesuffix('.wav')}.wav" if clip in names else clip
        parts = parse_clip_name(name)
        labels[clip] = labels[name] = Label(clip, condition, domains.get(clip, parts.domain if parts else None))
    return labels


def _flags(path: Path | None, values: tuple[str, str]) -> dict[str, str]:
    flags = {}
    for clip, flag in _pairs(path):
        if flag not in ("0", "1", "0.0", "1.0"):
            raise InputError(f"{path}: {clip} is {flag!r}; 0 means {values[0]}, 1 means {values[1]}")
        flags[clip] = values[int(float(flag))]
    return flags


def _pairs(path: Path | None) -> Iterator[tuple[str, str]]:
    for number, row in enumerate(_rows(path) if path else [], 1):
        if len(row) < 2:
            raise InputError(f"{path}: line {number} has {counted(len(row), 'column')}; it must be `clip,value`")
        yield row[0].strip(), row[1].strip()


def _listed(path: Path) -> Iterator[tuple[Group, Label, str]]:
    """Lines of a machine's name alone, each followed by its clips: published name, full name, 0 or 1."""
    machine = ""
    for number, row in enumerate(_rows(path), 1):
        cells = [cell.strip() for cell in row if cell.strip()]
        if len(cells) == 1:
            machine = cells[0]
            continue
        name = parse_clip_name(cells[1]) if len(cells) == 3 else None
        if name is None or cells[2] not in ("0", "1") or not machine:
            raise InputError(
                f"{path}: line {number} is neither a machine nor `clip,name,label`: {','.join(row)[:60]!r}"
            )
        condition = ("normal", "anomaly")[int(cells[2])]
        yield (machine, name.section), Label(cells[0], condition, name.domain), cells[1]


def _rows(path: Path) -> list[list[str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV ({error})") from None
