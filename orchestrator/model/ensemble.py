"""A packaged ensemble at work: recordings of a machine → scores and decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from branches.audio.cache import AudioCache, in_memory
from branches.audio.channels import cancelled_in_memory
from branches.beats.lora import merge_lora
from branches.model import BranchModel, batches_of_like_length, features_of, load_branch
from branches.spec import BUILT_IN, BranchSpec, Channel, EmbeddingSpec
from orchestrator.model.manifest import CLIPS, Manifest, bank_file, branch_file, package_of, read_manifest
from orchestrator.model.reference import Reference, Scores
from scoring.banks import attributes_as_text
from scoring.errors import InputError

BATCH = 16

Embeddings = dict[str, NDArray[np.float32]]


class Ensemble:
    """A fused system that scores recordings.

    Parameters
    ----------
    folder: a packaged ensemble, or an MLflow model that holds one
    device: `cpu` or `cuda`

    Raises
    ------
    InputError
        If there is no intact package, or `device` is not there.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise InputError("torch finds no GPU here; leave out --device cuda")
        self.folder = package_of(folder)
        self.manifest: Manifest = read_manifest(self.folder)
        self.clips: pa.Table = pq.read_table(self.folder / CLIPS)
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
            rows = np.flatnonzero(
                (self.clips["machine"].to_numpy() == machine) & (self.clips["section"].to_numpy() == section)
            )
            names = {member.bank for member in self.manifest.members}
            banks = {name: np.load(self.folder / bank_file(name), mmap_mode="r") for name in names}
            self._references[machine, section] = Reference(
                self.manifest.members,
                self.manifest.scale,
                self.clips["domain"].to_numpy()[rows],
                attributes_as_text(self.clips)[rows],
                {name: np.asarray(bank[rows]) for name, bank in banks.items()},
                self.manifest.rule,
                self.manifest.false_alarms,
            )
        return self._references[machine, section]

    def embed(self, recordings: Sequence[NDArray[np.float32]]) -> Embeddings:
        """Embeddings (recordings, …) by bank, of recordings (samples, channels) at 16 kHz."""
        audio = in_memory(recordings)
        by_bank: Embeddings = {}
        for channel, networks in self._networks.items():
            channel_audio = cancelled_in_memory(audio) if channel == "cancel" else audio
            for rows in batches_of_like_length(audio.lengths, BATCH):
                for name, part in self._embed_batch(channel_audio, channel, rows, networks).items():
                    embeddings = by_bank.setdefault(name, np.empty((len(audio), *part.shape[1:]), np.float32))
                    embeddings[rows] = part
        for name, embeddings in by_bank.items():
            if not np.isfinite(embeddings).all():
                raise InputError(
                    f"branch {name.partition('.')[0]} gives an embedding that is not finite: the level is absurd"
                )
        return by_bank

    @torch.inference_mode()
    def _embed_batch(
        self, audio: AudioCache, channel: Channel, rows: NDArray[np.int64], networks: Sequence[_Network]
    ) -> Embeddings:
        """One batch of recordings of like length, whose log-mels are computed once for all branches of a channel."""
        features, padding = features_of([audio.waveform(i, channel) for i in rows], self._device)
        embeddings: Embeddings = {}
        for network in networks:
            outputs = network.model.embeddings(features, padding, list(network.embeddings.values()))
            embeddings |= {n: output.cpu().numpy() for n, output in zip(network.embeddings, outputs, strict=True)}
        return embeddings


@dataclass(frozen=True)
class _Network:
    """A network, and what one pass through it gives: by bank, of one branch or of all frozen ones of a backbone."""

    model: BranchModel
    embeddings: dict[str, EmbeddingSpec]


def _networks(manifest: Manifest, folder: Path, device: str) -> dict[Channel, list[_Network]]:
    """The networks of all members, by the channel they hear."""
    networks: dict[tuple[Channel, str, str], _Network] = {}
    for member in manifest.members:
        name, spec = member.branch_id, manifest.branches[member.branch_id]
        key = (spec.channel, *((spec.backbone.path, spec.backbone.precision) if spec.is_frozen else (name, "")))
        if key not in networks:
            networks[key] = _Network(_model(name, spec, folder).to(device).eval(), {})
        networks[key].embeddings[member.bank] = spec.resolved(member.embedding)
    by_channel: dict[Channel, list[_Network]] = {}
    for (channel, *_), network in networks.items():
        by_channel.setdefault(channel, []).append(network)
    return by_channel


def _model(name: str, spec: BranchSpec, folder: Path) -> BranchModel:
    if not spec.is_frozen:
        model = load_branch(folder / branch_file(name))
        merge_lora(model.beats)  # an adapter beside each projection costs time at every recording
        return model
    path = spec.backbone.path
    location = path if path in BUILT_IN else str(folder / path)
    backbone = spec.backbone.model_copy(update={"path": location})
    return BranchModel(spec.model_copy(update={"backbone": backbone}))
