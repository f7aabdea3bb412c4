"""The generated set: samples, what each is and how it was judged, as a folder that all branches share.

`features.npy` holds (n, frames, 128) float16 normalised log-mels as `branches.frontend.fbank` gives, `rows.parquet` one
row of `SCHEMA` per sample, `check.json` the settings and the check's figures for each condition.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from branches.data.dataset import INDEX_SCHEMA
from branches.frames import N_MELS
from scoring.atomic import atomic_folder
from scoring.errors import InputError

SCHEMA = pa.schema(
    [
        *(INDEX_SCHEMA.field(name) for name in ("machine", "section", "domain", "attributes")),
        pa.field("class", pa.string()),  # name in `branches.data.dataset.class_labels`
        pa.field("reference", pa.string()),  # training clip that the sample was made from
        pa.field("nearest", pa.string()),  # the fields of `branches.generator.judge.Judgement`
        pa.field("nearest_distance", pa.float64()),
        pa.field("own_distance", pa.float64()),
        pa.field("heard", pa.string()),
        pa.field("verdict", pa.string()),
    ]
)
LEAST_ACCEPTED = 0.1
"""Share of accepted samples under which a generator has failed, and those that passed did so by chance."""


@dataclass(frozen=True)
class GeneratedSet:
    """Samples of rare conditions.

    features: (n, frames, 128) float16 normalised log-mels
    rows: n rows of `SCHEMA`
    check: settings, and for each condition how many samples there are and how they were judged
    """

    features: NDArray[np.float16]
    rows: pa.Table
    check: dict[str, Any]

    def accepted(self) -> NDArray[np.int64]:
        """Which samples passed the check: (k,) positions.

        Raises
        ------
        InputError
            If hardly any did, with the reasons.
        """
        verdict = self.rows["verdict"].to_numpy()
        accepted = np.flatnonzero(verdict == "accepted")
        if len(accepted) < LEAST_ACCEPTED * len(verdict):
            counts = ", ".join(f"{n} {name}" for name, n in zip(*np.unique(verdict, return_counts=True), strict=True))
            raise InputError(
                f"of {len(verdict)} generated samples {len(accepted)} passed the check ({counts}); give the "
                "generator more steps, raise `far_above` if most are far, or train without generated clips"
            )
        return accepted


def write_set(generated: GeneratedSet, folder: Path) -> None:
    """Write a set, in place of what was there; a crash leaves no half-written one."""
    with atomic_folder(folder) as unfinished:
        np.save(unfinished / "features.npy", generated.features)
        pq.write_table(generated.rows, unfinished / "rows.parquet")
        (unfinished / "check.json").write_text(json.dumps(generated.check, indent=1), encoding="utf-8")


def read_set(folder: Path) -> GeneratedSet:
    """Read a set; its features are memory-mapped.

    Raises
    ------
    InputError
        If the folder is absent or damaged.
    """
    try:
        features = np.load(folder / "features.npy", mmap_mode="r")
        rows = pq.read_table(folder / "rows.parquet")
        check = json.loads((folder / "check.json").read_text(encoding="utf-8"))
        if rows.schema != SCHEMA or features.shape[::2] != (rows.num_rows, N_MELS):
            raise ValueError("features and rows do not fit together")
    except (OSError, ValueError, EOFError) as error:  # Arrow's and JSON's errors are ValueErrors
        reason = str(error).split("\n")[0]
        raise InputError(f"{folder}: not a generated set, or damaged ({reason}); delete it and run again") from None
    return GeneratedSet(features, rows, check)
