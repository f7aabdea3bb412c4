"""The clip index: what the challenge's folders and file names say, as one Arrow table.

Understands the layout `<root>/<machine>/{train,test}/`, the names of DCASE Task 2 from 2020 to 2026
(`scoring/clip_names.py`), and the folders `source_test` and `target_test` of 2021.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from branches.data.digests import digests_of
from branches.data.layout import FOLDERS, clip_paths, noise_paths
from branches.spec import BranchSpec
from scoring.clip_names import nfc, parse_clip_name
from scoring.errors import InputError, counted
from scoring.table import KEY, SCHEMA, groups

log = logging.getLogger(__name__)

INDEX_SCHEMA = pa.schema(
    [
        *(field for field in SCHEMA if field.name not in ("score", "calibrated")),
        pa.field("attributes", pa.map_(pa.string(), pa.string())),
        pa.field("path", pa.string()),
    ]
)


@dataclass(frozen=True)
class Clip:
    """What a path says of a clip; `path` is relative to the data set's root, and as its file system spells it."""

    machine: str
    section: int
    clip: str
    split: str
    domain: str | None
    condition: str | None
    attributes: tuple[tuple[str, str], ...]
    path: str


def parse_path(path: str) -> Clip:
    """Read `<machine>/<folder>/<name>.wav`.

    Raises InputError if the folder or the name is none of the challenge's, or they contradict each other.
    """
    machine, folder, name = map(nfc, path.split("/")[-3:])
    if folder not in FOLDERS:
        raise InputError(f"{path}: the folder is none of {', '.join(FOLDERS)}")
    split, domain = FOLDERS[folder]
    parts = parse_clip_name(name)
    if parts is None:
        raise InputError(
            f"{path}: not a name of the challenge, e.g. section_00_source_train_normal_0000_noAttribute.wav; "
            "`tutti data import` takes recordings of any name"
        )
    domain = parts.domain or domain
    if parts.split not in (None, split):
        raise InputError(f"{path}: the name says {parts.split}, the folder says {split}")
    if split == "train" and domain is None:
        raise InputError(f"{path}: the name of a training clip must say source or target")
    condition = parts.condition or ("normal" if split == "train" else None)
    if split == "train" and condition == "anomaly":
        raise InputError(f"{path}: an anomaly among the training clips; training data are normal")
    return Clip(machine, parts.section, name, split, domain, condition, parts.attributes, path)


def index_of(paths: Iterable[str]) -> pa.Table:
    """The clip index of paths relative to a root, sorted by key."""
    rows = [vars(parse_path(path)) for path in paths]
    return pa.Table.from_pylist(rows, INDEX_SCHEMA).sort_by([(column, "ascending") for column in KEY])


def read_index(root: str | Path, tell: Callable[[str], object] = log.warning) -> pa.Table:
    """The clip index of a data set's folder; `tell` is called with a line on each machine and file that is not read.

    Raises InputError if `root` is no data set, a name cannot be read or is not UTF-8, two clips share a key, or a
    machine and section has fewer than three training clips.
    """
    index = index_of(clip_paths(Path(root), tell))
    _check_unique(index)
    _check_training(index)
    return index


def noise_index(root: str | Path) -> pa.Table:
    """Recordings of noise alone: columns machine and path, of `<machine>/supplemental/*noise*.wav`, maybe none.

    Since 2025 machines have such a folder, with noise for some and clean sounds of the machine for others.
    """
    paths = noise_paths(Path(root))
    machines = [nfc(path.partition("/")[0]) for path in paths]
    return pa.table({"machine": pa.array(machines, pa.string()), "path": pa.array(paths, pa.string())})


def _check_unique(index: pa.Table) -> None:
    counts = index.group_by(list(KEY)).aggregate([("path", "count"), ("path", "min")])
    twice = counts.filter(pc.greater(counts["path_count"], 1))
    if twice.num_rows:
        raise InputError(
            f"{twice['path_min'][0]}: another folder of this machine holds a clip of the same name; rename one or "
            "remove the copy (of 2021, source_test and target_test suffice: the baseline makes its test of them)"
        )


def _check_training(index: pa.Table) -> None:
    train = index["split"].to_numpy() == "train"
    for machine, section, rows in groups(index):
        # Of two clips each is as far from the other: no scale to calibrate on.
        if (n := int((rows & train).sum())) < 3:
            raise InputError(
                f"machine {machine} section {section} has {counted(n, 'training clip')}; scoring needs at least 3: "
                "add some, or take the machine out"
            )


def counts(index: pa.Table) -> dict[str, dict[str, int]]:
    """Clips of each machine by kind, e.g. {"fan": {"sections": 1, "train source": 990, "test hidden": 200}}."""
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    sections: dict[str, set[int]] = defaultdict(set)
    columns = (index[c].to_pylist() for c in ("machine", "section", "split", "domain", "condition"))
    for machine, section, split, domain, condition in zip(*columns, strict=True):
        kind = f"{split} {domain or 'hidden'}" + (f" {condition or 'hidden'}" if split == "test" else "")
        kinds[machine][kind] += 1
        sections[machine].add(section)
    return {machine: {"sections": len(sections[machine]), **kinds[machine]} for machine in kinds}


def class_labels(index: pa.Table) -> tuple[np.ndarray, list[str]]:
    """Labels (rows,) int64 of attribute classification, and the classes' names, sorted.

    Machine, section and attributes together are one class.
    """
    columns = (index[c].to_pylist() for c in ("machine", "section", "attributes"))
    keys = [
        "/".join([machine, f"section_{section:02d}", *(f"{k}={v}" for k, v in attributes)])
        for machine, section, attributes in zip(*columns, strict=True)
    ]
    names, labels = np.unique(keys, return_inverse=True)
    return labels.astype(np.int64), names.tolist()


@dataclass(frozen=True)
class Dataset:
    """A data set's clips, and what identifies them.

    index: the clip index (`read_index`), with a `digest` for each clip
    noise: recordings of noise alone (`noise_index`), with digests too
    """

    root: Path
    index: pa.Table
    noise: pa.Table

    @classmethod
    def read(cls, root: str | Path, digests: Path | None = None, write: bool = False) -> Dataset:
        """The data set in a folder.

        digests, write: a table with digests of unchanged clips, and whether to renew it, see `digests_of`

        Raises InputError as `read_index` does, and naming a clip that cannot be read.
        """
        root = Path(root)
        index, noise = read_index(root), noise_index(root)
        paths = [*index["path"].to_pylist(), *noise["path"].to_pylist()]
        column = pa.array(digests_of(root, paths, digests, write), pa.string())
        rows = index.num_rows
        return cls(root, index.append_column("digest", column[:rows]), noise.append_column("digest", column[rows:]))

    @cached_property
    def fingerprint(self) -> str:
        """Of all clips."""
        return _fingerprint(self.index, self.noise)

    def training_fingerprint(self, spec: BranchSpec | None = None) -> str:
        """Of the clips on which a branch's weights rest, or of all training clips; a frozen branch rests on none."""
        if spec is None:
            return self._of_training
        if spec.is_frozen:
            return ""
        noise = spec.augmentation.noise
        return self._of_training_and_noise if noise and noise.source == "supplemental" else self._of_training

    @cached_property
    def _of_training(self) -> str:
        return _fingerprint(self._training_clips)

    @cached_property
    def _of_training_and_noise(self) -> str:
        return _fingerprint(self._training_clips, self.noise)

    @property
    def _training_clips(self) -> pa.Table:
        return self.index.filter(pa.array(training_rows(self.index)))


def training_rows(index: pa.Table) -> NDArray[np.bool_]:
    """Mask (rows,) of the training clips."""
    train: NDArray[np.bool_] = index["split"].to_numpy() == "train"
    return train


def _fingerprint(*clips: pa.Table) -> str:
    joined = ["\n".join(table["digest"].to_pylist()) for table in clips]
    return hashlib.sha256("\n\n".join(joined).encode()).hexdigest()
