"""Machines that a packaged ensemble learns, or learns anew, from normal recordings of them; no network is trained."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from branches.audio import read_clip
from branches.audio.cache import in_memory
from branches.audio.formats import formats_of
from branches.data.folder_names import is_called_anomaly
from branches.spectra import spectrum_of
from orchestrator.model.ensemble import Ensemble
from orchestrator.model.manifest import MANIFEST, Normals, package_of
from orchestrator.model.reference import Reference
from scoring.atomic import atomic_folder
from scoring.clip_names import nfc
from scoring.errors import InputError, counted

log = logging.getLogger(__name__)

FEW = 20  # of so many clips each is a twentieth of what the threshold rests on


def enrol(
    model: Path, machine: str, recordings: Sequence[Path], out: Path, section: int = 0, replace: bool = False
) -> float:
    """Write to `out` a copy of a model that also knows `machine`; the threshold on the scores of that machine.

    The recordings become reference and calibration, as one domain without attributes. What the model knows of other
    machines and sections stays as it is.

    replace: the machine and section is one that the model knows, by other recordings

    Raises InputError if the model knows the machine and section and shall not, or the reverse, `out` exists, or the
    recordings cannot be used.
    """
    machine = nfc(machine)
    if out.exists():
        raise InputError(f"{out}: exists already; give another --out, or remove it")
    ensemble = Ensemble(model)
    known = ensemble.known.get((machine, section))
    if known and not replace:
        raise InputError(
            f"the model knows machine {machine} section {section} already; give another name, or --replace its normals"
        )
    if replace and not known:
        ensemble.reference(machine, section)  # which says what the model knows
    by_name: dict[str, Path] = {}
    for path in recordings:
        if path.name in by_name:
            raise InputError(f"{by_name[path.name]} and {path} have the same file name; rename one")
        by_name[path.name] = path
    names = list(by_name)
    if called := [path for path in recordings if is_called_anomaly(path)]:
        log.warning("taken as normal though called an anomaly: %s, %s", counted(len(called), "recording"), called[0])
    samples = [read_clip(path) for path in recordings]
    for path, sound in zip(recordings, samples, strict=True):
        if not sound.any():  # one such clip stretches the calibration so that nothing is anomalous any more
            raise InputError(f"{path}: nothing is heard in it; leave it out")
    clips = pa.table({"machine": [machine] * len(names), "split": ["train"] * len(names), "clip": names})
    try:
        one_domain = clips.append_column("domain", pa.array(["source"] * len(names)))
        reference = Reference.fit(ensemble.manifest, one_domain, ensemble.embed(samples), spectrum_of(recordings))
    except InputError as error:
        raise InputError(f"{machine} cannot be judged by these recordings: {error}") from None
    file = known.file if known else f"normals/{len(ensemble.known)}.npz"
    recorded = formats_of(in_memory(samples), clips)[machine]
    normals = ensemble.known | {
        (machine, section): Normals(machine=machine, section=section, file=file, format=recorded)
    }
    with atomic_folder(out) as unfinished:
        shutil.copytree(model, unfinished, dirs_exist_ok=True)
        folder = package_of(unfinished)
        reference.save(folder / file)
        manifest = ensemble.manifest.model_copy(update={"normals": tuple(normals.values())})
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    if len(names) < FEW:
        log.warning("the threshold is rough below %d recordings; there are %d", FEW, len(names))
    return reference.threshold
