"""A packaged ensemble at work: recordings of a machine → scores and decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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
from branches.spec import BUILT_IN, BranchSpec, Channel, EmbeddingSpec
from fusion.joined import weighted_sum
from fusion.scales import contributions, on_scale
from orchestrator.model.manifest import CLIPS, REMEDY, Manifest, Member, package_of, read_manifest
from scoring.banks import Bank, attributes_as_text
from scoring.calibration import METHODS, check_varied, location_scale
from scoring.decisions import gamma_threshold
from scoring.errors import InputError

BATCH = 16

Array = NDArray[np.float64]
Embeddings = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Scores:
    """Scores of M clips of one machine; `anomaly` is what the challenge calls the decision.

    names: of the system's T tables
    score, calibrated, anomaly: (M,)
    threshold: that `score` must exceed
    contributions: (T, M) whose sum over the tables is `score`
    """

    names: tuple[str, ...]
    score: Array
    calibrated: Array
    anomaly: NDArray[np.bool_]
    threshold: float
    contributions: Array

    def rows(self) -> list[dict[str, Any]]:
        """The same clip by clip: score, calibrated, threshold, anomaly, and contributions by the tables' names."""
        parts = self.contributions.T.tolist()
        values = zip(self.score.tolist(), self.calibrated.tolist(), self.anomaly.tolist(), parts, strict=True)
        return [
            {
                "score": score,
                "calibrated": calibrated,
                "threshold": self.threshold,
                "anomaly": anomaly,
                "contributions": dict(zip(self.names, parts, strict=True)),
            }
            for score, calibrated, anomaly, parts in values
        ]


class Reference:
    """The normals of one machine and section, as every member of an ensemble knows them; fitted once, asked often.

    Parameters
    ----------
    manifest: of the ensemble, with T members
    clips: the normal clips, with domain and attributes
    embeddings: (clips, …) by bank

    Raises
    ------
    InputError
        If there are too few clips, or their embeddings or scores do not vary.
    """

    def __init__(self, manifest: Manifest, clips: pa.Table, embeddings: Mapping[str, NDArray[np.float32]]) -> None:
        self._members, self._scale = manifest.members, manifest.scale
        self._weights = np.array([member.weight for member in self._members])
        domain, attributes = clips["domain"].to_numpy(), attributes_as_text(clips)
        self._banks = []
        for member in self._members:
            known = attributes if member.detector.uses_attributes else None
            bank = Bank(member.detector, embeddings[member.bank_file], domain, known)
            check_varied(bank.train_scores, member.name)
            self._banks.append(bank)
        self._train = self._calibrated([bank.train_scores for bank in self._banks])
        self.train_scores = weighted_sum(self._clips(0), self._train, self._weights, self._scale)
        check_varied(self.train_scores, "the system")
        self.threshold = gamma_threshold(self.train_scores, 1 - manifest.false_alarms)

    def score(self, embeddings: Mapping[str, NDArray[np.float32]]) -> Scores:
        """Scores of M other clips from their embeddings (M, …) by bank."""
        pairs = zip(self._members, self._banks, strict=True)
        members = self._calibrated([bank.scores(embeddings[member.bank_file]) for member, bank in pairs])
        n, values = len(self.train_scores), np.concatenate([self._train, members], axis=1)
        clips = self._clips(members.shape[1])
        score = weighted_sum(clips, values, self._weights, self._scale)[n:]
        shares = contributions(self._scale, self._weights, on_scale(self._scale, clips, values)[:, n:])
        calibrated = location_scale(self.train_scores, score)
        names = tuple(member.name for member in self._members)
        return Scores(names, score, calibrated, score > self.threshold, self.threshold, shares)

    def _calibrated(self, scores: Sequence[Array]) -> Array:
        """Calibrated scores (T, M) from the scores (M,) of each member."""
        triples = zip(self._members, self._banks, scores, strict=True)
        return np.stack([METHODS[m.detector.calibration](bank.train_scores, raw) for m, bank, raw in triples])

    def _clips(self, others: int) -> pa.Table:
        """Rows of the normals and of so many other clips, all of one machine and section, for their ranks."""
        split = ["train"] * self._train.shape[1] + ["test"] * others
        return pa.table({"machine": ["m"] * len(split), "section": [0] * len(split), "split": split})


class Ensemble:
    """A fused system that scores recordings.

    Parameters
    ----------
    folder: a packaged ensemble, or an MLflow model that holds one
    device: `cpu` or `cuda`
    false_alarms: share of normal clips above a threshold; None takes the package's

    Raises
    ------
    InputError
        If there is no intact package, or `device` is not there.
    """

    def __init__(self, folder: Path, device: str = "cpu", false_alarms: float | None = None) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise InputError("torch finds no GPU here; leave out --device cuda")
        self.folder = package_of(folder)
        self.manifest = read_manifest(self.folder)
        if false_alarms is not None:
            self.manifest = self.manifest.model_copy(update={"false_alarms": false_alarms})
        try:
            self.clips: pa.Table = pq.read_table(self.folder / CLIPS)
        except (OSError, ValueError):  # Arrow's errors are both
            raise InputError(f"{self.folder / CLIPS}: damaged; {REMEDY}") from None
        self._device = torch.device(device)
        self._networks = _networks(self.manifest, self.folder, device)
        self._references: dict[tuple[str, int], Reference] = {}

    @cached_property
    def machines(self) -> dict[str, list[int]]:
        """Sections of every machine that the ensemble knows."""
        sections: dict[str, list[int]] = {}
        pairs = zip(self.clips["machine"].to_pylist(), self.clips["section"].to_pylist(), strict=True)
        for machine, section in sorted(set(pairs)):
            sections.setdefault(machine, []).append(section)
        return sections

    @property
    def only_machine(self) -> str | None:
        """The machine that the ensemble knows, if it is one."""
        return next(iter(self.machines)) if len(self.machines) == 1 else None

    def score(self, machine: str, recordings: Sequence[NDArray[np.float32]], section: int = 0) -> Scores:
        """Scores of recordings (samples, channels) at 16 kHz of one machine; each is judged by itself.

        Raises
        ------
        InputError
            If the machine or section is not known, or an embedding is not finite.
        """
        reference = self.reference(machine, section)
        return reference.score(self.embed(recordings))

    def differences(self, machine: str, samples: NDArray[np.float32]) -> str:
        """In what a recording (samples, channels) at 16 kHz is unlike the machine's clips; empty if in nothing."""
        usual = self.manifest.formats.get(machine)
        return usual.differences(samples) if usual else ""

    def reference(self, machine: str, section: int = 0) -> Reference:
        """What is known of a machine and section; fitted when it is first asked for."""
        if section not in self.machines.get(machine, []):
            enrolled = ", ".join(f"{m} section {s}" for m, sections in self.machines.items() for s in sections)
            raise InputError(f"the model does not know machine {machine} section {section}; it knows {enrolled}")
        if (machine, section) not in self._references:
            is_its = (self.clips["machine"].to_numpy() == machine) & (self.clips["section"].to_numpy() == section)
            banks = {member.bank_file: self._bank(member.bank_file, is_its) for member in self.manifest.members}
            self._references[machine, section] = Reference(self.manifest, self.clips.filter(is_its), banks)
        return self._references[machine, section]

    def _bank(self, name: str, rows: NDArray[np.bool_]) -> NDArray[np.float32]:
        try:
            return np.asarray(np.load(self.folder / name, mmap_mode="r")[rows])
        except (OSError, ValueError, IndexError):
            raise InputError(f"{self.folder / name}: damaged; {REMEDY}") from None

    def embed(self, recordings: Sequence[NDArray[np.float32]]) -> Embeddings:
        """Embeddings (recordings, …) by bank, of recordings (samples, channels) at 16 kHz."""
        audio = in_memory(recordings)
        by_bank: Embeddings = {}
        for channel, networks in self._networks.items():
            heard = cancelled_in_memory(audio) if channel == "cancel" else audio
            for rows in batches_of_like_length(audio.lengths, BATCH):
                features = features_of([heard.waveform(i, channel) for i in rows], self._device)
                for network in networks.values():
                    outputs = network.model.embeddings(*features, list(network.embeddings.values()))
                    for name, output in zip(network.embeddings, outputs, strict=True):
                        embeddings = by_bank.setdefault(name, np.empty((len(audio), *output.shape[1:]), np.float32))
                        embeddings[rows] = output.cpu().numpy()
        for member in self.manifest.members:
            if not np.isfinite(by_bank[member.bank_file]).all():
                raise InputError(f"{member.name} gives an embedding that is not finite: the level is absurd")
        return by_bank


@dataclass(frozen=True)
class _Network:
    """A network, and what one pass through it gives: by bank, of one branch or of all frozen ones of a backbone."""

    model: BranchModel
    embeddings: dict[str, EmbeddingSpec]


def _networks(manifest: Manifest, folder: Path, device: str) -> dict[Channel, dict[tuple[str, str], _Network]]:
    """The networks of all members, by the channel they hear."""
    by_channel: dict[Channel, dict[tuple[str, str], _Network]] = {}
    for member in manifest.members:
        spec = manifest.branches[member.branch_id]
        key = (spec.backbone.path, spec.backbone.precision) if spec.is_frozen else (member.branch_id, "")
        networks = by_channel.setdefault(spec.channel, {})
        if key not in networks:
            networks[key] = _Network(_model(member, spec, folder).to(device).eval(), {})
        networks[key].embeddings[member.bank_file] = spec.resolved(member.embedding)
    return by_channel


def _model(member: Member, spec: BranchSpec, folder: Path) -> BranchModel:
    if not spec.is_frozen:
        model = load_branch(folder / member.branch_file)
        merge_lora(model.beats)  # an adapter beside each projection costs time at every recording
        return model
    path = spec.backbone.path
    location = path if path in BUILT_IN else str(folder / path)
    backbone = spec.backbone.model_copy(update={"path": location})
    return BranchModel(spec.model_copy(update={"backbone": backbone}))
