"""A packaged ensemble at work: recordings of a machine → scores and decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from branches.audio.cache import in_memory
from branches.audio.channels import cancelled_in_memory
from branches.beats.lora import merge_lora
from branches.model import BranchModel, batches_of_like_length, features_of, load_branch
from branches.spec import BUILT_IN, BranchSpec, EmbeddingSpec
from fusion.scales import on_scale
from orchestrator.model.manifest import CLIPS, REMEDY, Manifest, package_of, read_manifest
from scoring.banks import ReferenceBank
from scoring.calibration import check_varied, location_scale
from scoring.clip_names import nfc
from scoring.decisions import gamma_threshold
from scoring.errors import InputError
from scoring.table import groups

BATCH = 16

Array = NDArray[np.float64]
Embeddings = dict[str, NDArray[np.float32]]

# A branch's network, and what one pass through it gives: by bank.
Network = tuple[BranchModel, dict[str, EmbeddingSpec]]


class Reference:
    """The normals of one machine and section, as every member of an ensemble knows them; fitted once, asked often.

    Parameters
    ----------
    manifest: of the ensemble, with T members
    clips: the n normal clips, with their domain
    embeddings: (n, …) by bank

    Attributes
    ----------
    train_scores: (n,) cross-fitted scores of the normals
    threshold: that a score must exceed

    Raises InputError if there are too few clips, or their embeddings or scores do not vary.
    """

    def __init__(self, manifest: Manifest, clips: pa.Table, embeddings: Mapping[str, NDArray[np.float32]]) -> None:
        self._members, self._scale = manifest.members, manifest.scale
        domain = clips["domain"].to_numpy()
        self._banks = [ReferenceBank(m.detector, embeddings[m.bank_file], domain) for m in self._members]
        for member, bank in zip(self._members, self._banks, strict=True):
            check_varied(bank.train_scores, member.name)
        self.train_scores: Array = self._contributions([np.empty(0)] * len(self._banks)).sum(axis=0)
        check_varied(self.train_scores, "the system")
        self.threshold = gamma_threshold(self.train_scores, 1 - manifest.false_alarms)

    def score(self, embeddings: Mapping[str, NDArray[np.float32]]) -> pa.Table:
        """Scores of m other clips from their embeddings (m, …) by bank; see `Ensemble.score`."""
        pairs = zip(self._members, self._banks, strict=True)
        shares = self._contributions([bank.scores(embeddings[member.bank_file]) for member, bank in pairs])
        n, names = len(self.train_scores), [member.name for member in self._members]
        score = shares.sum(axis=0)[n:]
        parts = [
            [{"branch": name, "contribution": part} for name, part in zip(names, clip, strict=True)]
            for clip in shares[:, n:].T.tolist()
        ]
        return pa.table(
            {
                "score": score,
                "calibrated": location_scale(self.train_scores, score),
                "threshold": np.full(len(score), self.threshold),
                "anomaly": score > self.threshold,
                "contributions": parts,
            }
        )

    def _contributions(self, others: Sequence[Array]) -> Array:
        """What each member has in the scores of normals and others: (T, n + m), from raw scores of these T × (m,)."""
        calibrated = [
            location_scale(bank.train_scores, np.concatenate([bank.train_scores, raw]))
            for bank, raw in zip(self._banks, others, strict=True)
        ]
        # Ranks are taken among the training rows of a machine and section.
        split = ["train"] * len(self._banks[0].train_scores) + ["test"] * len(others[0])
        clips = pa.table({"machine": ["m"] * len(split), "section": [0] * len(split), "split": split})
        weights = np.array([member.weight for member in self._members])
        return weights[:, None] * on_scale(self._scale, clips, np.stack(calibrated))


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
        self.clips: pa.Table = _read(self.folder / CLIPS)
        self._banks = {file: _read(self.folder / file) for file in {m.bank_file for m in self.manifest.members}}
        self.rows = {(nfc(machine), section): rows for machine, section, rows in groups(self.clips)}
        self.machines = list(dict.fromkeys(machine for machine, _ in self.rows))
        self.only_machine = self.machines[0] if len(self.machines) == 1 else None
        self._device = torch.device(device)
        self._networks = _networks(self.manifest, self.folder, device)
        self._references: dict[tuple[str, int], Reference] = {}

    def score(self, machine: str, recordings: Sequence[NDArray[np.float32]], section: int = 0) -> pa.Table:
        """Scores of recordings (samples, channels) at 16 kHz of one machine; each is judged by itself.

        Returns
        -------
        table: score, calibrated, threshold, anomaly (the challenge's decision), and contributions: by branch and
            detector, the score in sum

        Raises InputError if the machine or section is not known, or an embedding is not finite.
        """
        return self.reference(machine, section).score(self.embed(recordings))

    def warning(self, machine: str, samples: NDArray[np.float32]) -> str:
        """In what a recording (samples, channels) at 16 kHz is unlike the machine's clips; empty if in nothing."""
        usual = {nfc(name): usual for name, usual in self.manifest.formats.items()}.get(nfc(machine))
        differences = usual.differences(samples) if usual else ""
        return f"unlike the clips of {machine}: {differences}" if differences else ""

    def reference(self, machine: str, section: int = 0) -> Reference:
        """What is known of a machine and section; fitted when it is first asked for."""
        key = nfc(machine), section
        if key not in self.rows:
            known = ", ".join(f"{m} section {s}" for m, s in self.rows)
            raise InputError(f"the model does not know machine {machine} section {section}; it knows {known}")
        if key not in self._references:
            banks = {file: bank[self.rows[key]] for file, bank in self._banks.items()}
            self._references[key] = Reference(self.manifest, self.clips.filter(self.rows[key]), banks)
        return self._references[key]

    def embed(self, recordings: Sequence[NDArray[np.float32]]) -> Embeddings:
        """Embeddings (recordings, …) by bank, of recordings (samples, channels) at 16 kHz."""
        audio = in_memory(recordings)
        channels = {model.spec.channel for model, _ in self._networks}
        if "cancel" in channels:
            audio = cancelled_in_memory(audio)
        by_bank: Embeddings = {}
        for rows in batches_of_like_length(audio.lengths, BATCH):
            heard = {c: features_of([audio.waveform(i, c) for i in rows], self._device) for c in channels}
            for model, embeddings in self._networks:
                outputs = model.embeddings(*heard[model.spec.channel], list(embeddings.values()))
                for file, output in zip(embeddings, outputs, strict=True):
                    of_all = by_bank.setdefault(file, np.empty((len(audio), *output.shape[1:]), np.float32))
                    of_all[rows] = output.cpu().numpy()
        for member in self.manifest.members:
            if not np.isfinite(by_bank[member.bank_file]).all():
                raise InputError(f"{member.name} gives an embedding that is not finite: the level is absurd")
        return by_bank


def _read(path: Path) -> Any:
    try:
        return pq.read_table(path) if path.suffix == ".parquet" else np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):  # Arrow's and NumPy's
        raise InputError(f"{path}: missing or damaged; {REMEDY}") from None


def _networks(manifest: Manifest, folder: Path, device: str) -> list[Network]:
    networks: dict[str, Network] = {}
    for member in manifest.members:
        if member.branch_id not in networks:
            model = _model(manifest.branches[member.branch_id], folder, member.branch_file)
            networks[member.branch_id] = model.to(device).eval(), {}
        networks[member.branch_id][1][member.bank_file] = member.embedding
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
