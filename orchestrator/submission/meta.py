"""The meta file of a system, from its result and from what the authors say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from branches.spec import BUILT_IN, LOG_MEL, BranchSpec, FileSpec
from fusion.scales import CALIBRATED, RANK, is_sum
from orchestrator.cost import BASE_PARAMETERS, CLIP_SECONDS, PARAMETERS, PATCHES_PER_SECOND
from orchestrator.submission.schema import AuthorsFile, SystemNames
from orchestrator.system import ConfigurationSpec, SystemSpec
from scoring.metrics import CELLS

_CHANNELS = {
    "near": "near microphone",
    "far": "far microphone",
    "mean": "mean of near and far microphone",
    "cancel": "near microphone, the far one cancelled",
}
_BEATS = (
    "S. Chen et al., BEATs: Audio Pre-Training with Acoustic Tokenizers, ICML 2023, https://arxiv.org/abs/2212.09058"
)

# What BEATs was trained on.
_AUDIOSET = {"name": "AudioSet", "url": "https://research.google.com/audioset/"}

Used = dict[str, tuple[ConfigurationSpec, list[BranchSpec]]]


def system_meta(result: Mapping[str, Any], label: str, authors: AuthorsFile) -> dict[str, Any]:
    """The content of a meta file.

    result: as saved in `result.json`; only configurations with a weight count
    """
    system = SystemSpec.model_validate(result["spec"])
    names = authors.systems.get(system.name, SystemNames())
    used = _used(system, result["delivered"]["weights"])
    branches = list(dict.fromkeys(spec for _, specs in used.values() for spec in specs))
    resources = list(_resources(branches))
    machines = result["machines"]["in_sample"] or {}
    return {
        "submission": {
            "label": label,
            "name": names.name or system.name,
            "abbreviation": names.abbreviation or system.name[:10],
            "abstract": authors.abstract,
            "authors": authors.authors,
        },
        "system": {
            "description": _description(result["delivered"], used, branches),
            "complexity": _complexity(branches),
            "external_resources": resources,
            "external_datasets": [_AUDIOSET] if resources else [],
            "source_code": authors.source_code,
        },
        "results": {
            "development_dataset": {
                machine: {cell: None if values[cell] is None else round(values[cell], 2) for cell in CELLS}
                for machine, values in machines.items()
            }
        },
    }


def _used(system: SystemSpec, weights: Mapping[str, Mapping[str, float]]) -> Used:
    """Configurations that count in the delivered score, and the branches of their seeds."""
    return {
        f"{subsystem}/{name}": (c, [c.branch.model_copy(update={"seed": seed}) for seed in c.seeds])
        for subsystem, configurations in system.subsystems.items()
        for name, c in configurations.items()
        if weights.get(subsystem, {}).get(name)
    }


def _description(delivered: Mapping[str, Any], used: Used, branches: list[BranchSpec]) -> dict[str, Any]:
    configurations = [c for c, _ in used.values()]
    tables = sum(len(specs) for _, specs in used.values())
    poolings = [_words(c.branch.pooling_of(c.embedding).name) for c in configurations]
    networks = ["log-mels" if c.branch.backbone.path == LOG_MEL else "BEATs" for c in configurations]
    of = sum(map(len, delivered["weights"].values()))
    return {
        "summary": f"{len(used)} of {of} configurations, {tables} score tables: {', '.join(used)}",
        "input": _listed(_CHANNELS[b.channel] for b in branches),
        "input_sampling_rate": "16 kHz",
        "front_end": "far-microphone cancellation" if any(b.channel == "cancel" for b in branches) else None,
        "acoustic_features": "log-mel energies, 128 bands, frames of 25 ms every 10 ms",
        "data_augmentation": _listed(_words(name) for b in branches for name, value in b.augmentation if value),
        "embeddings": _listed(f"{n}, {p} pooling" for n, p in zip(networks, poolings, strict=True)),
        "machine_learning_method": _listed(map(_training, branches)),
        "aggregation_method": _listed(poolings),
        "domain_adaptation_method": None,
        "domain_generalization_method": "reference clips by domain, distances standardised in each",
        "anomaly_detector": _listed(_words(c.detector.name) for c in configurations),
        "ensemble_method": _ensemble(delivered) if tables > 1 else None,
        "ensemble_method_subsystem_count": tables,
        "decision_making": "0.9 quantile of a gamma distribution fitted to the scores of training clips",
        "attribute_usage": "classes of the training" if any(not b.is_frozen for b in branches) else None,
        "external_data_usage": "pre-trained model" if any(_resources(branches)) else None,
        "development_data_usage": _listed("reference" if b.is_frozen else "fine-tuning, reference" for b in branches),
    }


def _ensemble(delivered: Mapping[str, Any]) -> str:
    """How scores are put together, see `fusion.scales`; of a result that names no scale they are calibrated ones."""
    scale = delivered.get("scale", CALIBRATED)
    if is_sum(scale):
        of = "ranks" if scale == RANK else "calibrated scores"
        return f"weighted mean of {of}, weights: {_words(delivered['method'])}"
    return f"{_words(scale)} of calibrated scores; no weights are chosen"


def _listed(texts: Iterable[str]) -> str | None:
    return "; ".join(dict.fromkeys(texts)) or None


def _words(name: str) -> str:
    return name.replace("_", " ")


def _training(spec: BranchSpec) -> str:
    if spec.backbone.path == LOG_MEL:
        return "log-mel statistics"
    if spec.strategy.name == "frozen":
        return "frozen BEATs"
    auxiliary = ", masked patch prediction" if spec.masked_prediction is not None else ""
    return f"attribute classification ({_words(spec.objective.name)}, {spec.strategy.name} fine-tuning{auxiliary})"


def _complexity(branches: list[BranchSpec]) -> dict[str, Any]:
    """Parameters, and multiply-accumulates for a clip of ten seconds, of the backbones.

    Branches that leave the backbone as it is share it, and those on the same channel its pass over a clip too.
    An operation for each parameter and patch is counted, which leaves out the products inside the attention.
    """
    networks, passes = {}, {}
    for b in branches:
        network = b.backbone.path if b.strategy.name in ("frozen", "head") else b
        networks[network] = passes[network, b.channel] = PARAMETERS.get(b.backbone.path, BASE_PARAMETERS)
    macs = sum(passes.values()) * PATCHES_PER_SECOND * CLIP_SECONDS
    return {"total_parameters": sum(networks.values()), "MACS": f"{macs / 1e9:.3g} G"}


def _resources(branches: list[BranchSpec]) -> Iterator[dict[str, Any]]:
    """Every file of weights from outside, by its name and digest; where it lies here is nobody's business."""
    files: dict[FileSpec, str] = {b.backbone: "pre-trained model BEATs" for b in branches}
    for b in branches:
        if b.masked_prediction is not None:
            files |= dict.fromkeys(b.masked_prediction.tokenizers, "acoustic tokenizer of BEATs")
    outside = {
        (PurePosixPath(f.path).name, f.sha256): kind
        for f, kind in files.items()
        if f.path not in BUILT_IN and not f.path.startswith("random:")
    }
    for (name, sha256), kind in outside.items():
        yield {"name": kind, "file": name, "sha256": sha256, "reference": _BEATS}
