"""A packaged ensemble at work: recordings of a machine → scores and decisions."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from branches.audio.cache import in_memory
from branches.audio.channels import cancelled_in_memory
from branches.beats.lora import merge_lora
from branches.frames import SAMPLE_RATE
from branches.model import BranchModel, batches_of_like_length, features_of, load_branch
from branches.spec import BUILT_IN, BranchSpec, EmbeddingSpec
from orchestrator.model.manifest import REMEDY, Manifest, package_of, read_manifest
from orchestrator.model.reference import Reference
from scoring.clip_names import nfc
from scoring.errors import InputError

BATCH = 16

Embeddings = dict[str, NDArray[np.float32]]

# A branch's network, and what one pass through it gives: by `Member.source`.
Network = tuple[BranchModel, dict[str, EmbeddingSpec]]


class Ensemble:
    """A fused system that scores recordings.

    Parameters
    ----------
    folder: a packaged ensemble, or an MLflow model that holds one
    device: `cpu` or `cuda`
    false_alarms: share of normal clips above a threshold; None takes the package's

    Raises InputError if there is no intact package, or `device` is not there.
    """

    def __init__(self, folder: Path, device: str = "cpu", false_alarms: float | None = None) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise InputError("torch finds no GPU here; leave out --device cuda")
        self.folder = package_of(folder)
        self.manifest = read_manifest(self.folder)
        if false_alarms is not None:
            self.manifest = self.manifest.model_copy(update={"false_alarms": false_alarms})
        self.known = {(nfc(normals.machine), normals.section): normals for normals in self.manifest.normals}
        for normals in self.known.values():
            if not zipfile.is_zipfile(file := self.folder / normals.file):
                raise InputError(f"{file}: missing or damaged; {REMEDY}")
        self.machines = list(dict.fromkeys(machine for machine, _ in self.known))
        self.only_machine = self.machines[0] if len(self.machines) == 1 else None
        self._device = torch.device(device)
        self._networks = _networks(self.manifest, self.folder, device)
        self._references: dict[tuple[str, int], Reference] = {}

    def score(self, machine: str, recordings: Sequence[NDArray[np.float32]], section: int = 0) -> pa.Table:
        """Scores of recordings (samples, channels) at 16 kHz of one machine; each is judged by itself.

        Returns
        -------
        table: score, calibrated, threshold, anomaly (the challenge's decision), contributions: by branch and
            detector, the score in sum, and changed: what stands out against the normals; empty if nothing does, null if
            the package does not know their spectrum

        Raises InputError if the machine or section is not known, or an embedding is not finite.
        """
        reference = self.reference(machine, section)
        table = reference.score(self.embed(recordings))
        changed = [reference.spectrum and reference.spectrum.change(samples) for samples in recordings]
        return table.append_column("changed", pa.array(changed, pa.string()))

    def warning(self, machine: str, samples: NDArray[np.float32], section: int = 0) -> str:
        """In what a recording (samples, channels) at 16 kHz is unlike the machine's clips; empty if in nothing."""
        usual = self.known[nfc(machine), section].format
        differences = usual.differences(samples) if usual else ""
        return f"unlike the clips of {machine}: {differences}" if differences else ""

    def reference(self, machine: str, section: int = 0) -> Reference:
        """What is known of a machine and section; read when it is first asked for."""
        key = nfc(machine), section
        if key not in self.known:
            known = ", ".join(f"{m} section {s}" for m, s in self.known)
            raise InputError(f"the model does not know machine {machine} section {section}; it knows {known}")
        if key not in self._references:
            self._references[key] = Reference.load(self.manifest, self.folder / self.known[key].file)
        return self._references[key]

    def warm_up(self) -> None:
        """Do now what takes time once, so that the first recording is scored as fast as all others."""
        silence = self.embed([np.zeros((SAMPLE_RATE, 1), np.float32)])
        for machine, section in self.known:
            self.reference(machine, section).score(silence)

    def embed(self, recordings: Sequence[NDArray[np.float32]]) -> Embeddings:
        """Embeddings (recordings, …) by `Member.source`, of recordings (samples, channels) at 16 kHz."""
        audio = in_memory(recordings)
        channels = {model.spec.channel for model, _ in self._networks}
        if "cancel" in channels:
            audio = cancelled_in_memory(audio)
        by_source: Embeddings = {}
        for rows in batches_of_like_length(audio.lengths, BATCH):
            heard = {c: features_of([audio.waveform(i, c) for i in rows], self._device) for c in channels}
            for model, embeddings in self._networks:
                outputs = model.embeddings(*heard[model.spec.channel], list(embeddings.values()))
                for source, output in zip(embeddings, outputs, strict=True):
                    of_all = by_source.setdefault(source, np.empty((len(audio), *output.shape[1:]), np.float32))
                    of_all[rows] = output.cpu().numpy()
        for member in self.manifest.members:
            if not np.isfinite(by_source[member.source]).all():
                raise InputError(f"{member.name} gives an embedding that is not finite: the level is absurd")
        return by_source


def _networks(manifest: Manifest, folder: Path, device: str) -> list[Network]:
    networks: dict[str, Network] = {}
    for member in manifest.members:
        if member.branch_id not in networks:
            model = _model(manifest.branches[member.branch_id], folder, member.branch_file)
            networks[member.branch_id] = model.to(device).eval(), {}
        networks[member.branch_id][1][member.source] = member.embedding
    return list(networks.values())


def _model(spec: BranchSpec, folder: Path, file: str) -> BranchModel:
    backbone = spec.backbone.path
    if backbone not in BUILT_IN:
        backbone = str(folder / backbone)
    if spec.is_frozen:
        located = spec.backbone.model_copy(update={"path": backbone})
        return BranchModel(spec.model_copy(update={"backbone": located}))
    model = load_branch(folder / file, backbone)
    merge_lora(model.beats)  # an adapter beside each projection costs time at every recording
    return model
