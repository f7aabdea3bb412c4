"""A machine that the ensemble has never heard, from a handful of its normal recordings; nothing is trained."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from branches.audio import read_clip
from branches.audio.cache import in_memory
from branches.audio.formats import formats_of
from branches.data.folder_names import is_called_anomaly
from orchestrator.model.ensemble import Ensemble, Reference
from orchestrator.model.manifest import CLIPS, MANIFEST, package_of
from scoring.atomic import atomic_folder
from scoring.clip_names import nfc
from scoring.errors import InputError

log = logging.getLogger(__name__)

FEW = 20  # of so many clips each is a twentieth of what the threshold rests on


def enrol(model: Path, machine: str, recordings: Sequence[Path], out: Path, section: int = 0) -> float:
    """Write to `out` a copy of a model that also knows `machine`; the threshold on the scores of that machine.

    The recordings become banks and calibration, as one domain without attributes. What the model knows of other
    machines stays as it is.

    Raises InputError if the model knows the machine and section, `out` exists, or the recordings cannot be used.
    """
    machine = nfc(machine)
    if out.exists():
        raise InputError(f"{out}: exists already; give another --out, or remove it")
    ensemble = Ensemble(model)
    if (machine, section) in ensemble.rows:
        raise InputError(f"the model knows machine {machine} section {section} already; give another name")
    names = [path.name for path in recordings]
    if len(set(names)) < len(names):
        raise InputError("two recordings have the same file name; rename one")
    if called := [path for path in recordings if is_called_anomaly(path)]:
        log.warning("%s and in all %d recordings are called anomalies, and are taken as normal", called[0], len(called))
    same = {"machine": machine, "section": section, "split": "train", "domain": "source", "attributes": []}
    clips = pa.Table.from_pylist([{**same, "clip": name} for name in names], ensemble.clips.schema)
    samples = [read_clip(path) for path in recordings]
    embeddings = ensemble.embed(samples)
    try:
        threshold = Reference(ensemble.manifest, clips, embeddings).threshold
    except InputError as error:
        raise InputError(f"{machine} cannot be judged by these recordings: {error}") from None
    formats = dict(ensemble.manifest.formats)
    recorded = formats_of(in_memory(samples), clips)[machine]
    formats[machine] = recorded.joined(formats[machine]) if machine in formats else recorded
    with atomic_folder(out) as unfinished:
        shutil.copytree(model, unfinished, dirs_exist_ok=True)
        folder = package_of(unfinished)
        for name, added in embeddings.items():
            np.save(folder / name, np.concatenate([np.load(folder / name), added]))
        pq.write_table(pa.concat_tables([ensemble.clips, clips]), folder / CLIPS)
        manifest = ensemble.manifest.model_copy(update={"formats": formats})
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    if len(names) < FEW:
        log.warning("%d recordings tell little of how scores vary; the threshold is rough below %d", len(names), FEW)
    return threshold
