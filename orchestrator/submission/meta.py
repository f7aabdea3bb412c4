"""The meta file of a system, from its result and from what the authors say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

from branches.spec import BUILT_IN, LOG_MEL, AugmentationSpec, BranchSpec, FileSpec
from fusion.scales import CALIBRATED, GENERALISED_MEAN, MINIMUM, RANK, SOFT_MINIMUM, is_sum
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


def system_meta(result: dict[str, Any], label: str, authors: AuthorsFile) -> dict[str, Any]:
    """The content of a meta file.

    result: as saved in `result.json`; only configurations with a weight count
    """
    system = SystemSpec.model_validate(result["spec"])
    names = authors.systems.get(system.name, SystemNames())
    used = list(_used(system, result["delivered"]["weights"]))
    branches = list(dict.fromkeys(spec for _, specs in used for spec in specs))
    return {
        "submission": {
            "label": label,
            "name": names.name or system.name,
            "abbreviation": names.abbreviation or system.name[:10],
            "abstract": authors.abstract,
            "authors": authors.authors,
        },
        "system": {
            "description": _description(result, used, branches),
            "complexity": _complexity(branches),
            "external_resources": list(_resources(branches)),
            "external_datasets": [_AUDIOSET] if any(_resources(branches)) else [],
            "source_code": authors.source_code,
        },
        "results": {"development_dataset": _results(result["machines"]["in_sample"])},
    }


Used = list[tuple[ConfigurationSpec, list[BranchSpec]]]


def _used(
    system: SystemSpec, weights: dict[str, dict[str, float]]
) -> Iterator[tuple[ConfigurationSpec, list[BranchSpec]]]:
    """Configurations that count in the delivered score, and the branches of their seeds."""
    for subsystem, configurations in system.subsystems.items():
        for name, c in configurations.items():
            if weights.get(subsystem, {}).get(name):
                yield c, [c.branch.model_copy(update={"seed": seed}) for seed in c.seeds]


def _description(result: dict[str, Any], used: Used, branches: list[BranchSpec]) -> dict[str, Any]:
    tables = sum(len(specs) for _, specs in used)
    poolings = [_words(c.branch.pooling_of(c.embedding).name) for c, _ in used]
    return {
        "summary": _summary(result, tables),
        "input": _listed(_CHANNELS[b.channel] for b in branches),
        "input_sampling_rate": "16 kHz",
        "front_end": "far-microphone cancellation" if any(b.channel == "cancel" for b in branches) else None,
        "acoustic_features": "log-mel energies, 128 bands, frames of 25 ms every 10 ms",
        "data_augmentation": _listed(name for b in branches for name in _augmentations(b.augmentation)),
        "embeddings": _listed(
            f"{'log-mels' if c.branch.backbone.path == LOG_MEL else 'BEATs'}, {pooling} pooling"
            for (c, _), pooling in zip(used, poolings, strict=True)
        ),
        "machine_learning_method": _listed(_training(b) for b in branches),
        "aggregation_method": _listed(poolings),
        "domain_adaptation_method": None,
        "domain_generalization_method": "reference clips by domain, distances standardised in each",
        "anomaly_detector": _listed(_words(c.detector.name) for c, _ in used),
        "ensemble_method": _ensemble(result["delivered"]) if tables > 1 else None,
        "ensemble_method_subsystem_count": tables,
        "decision_making": "0.9 quantile of a gamma distribution fitted to the scores of training clips",
        "attribute_usage": "classes of the training" if any(not b.is_frozen for b in branches) else None,
        "external_data_usage": "pre-trained model" if any(_resources(branches)) else None,
        "development_data_usage": _listed("reference" if b.is_frozen else "fine-tuning, reference" for b in branches),
    }


def _ensemble(delivered: dict[str, Any]) -> str:
    """How scores are put together, see `fusion.scales`; of a result that names no scale they are calibrated ones."""
    scale = delivered.get("scale", CALIBRATED)
    kind, _, number = scale.partition(" ")
    formulas = {
        SOFT_MINIMUM: f"soft minimum of calibrated scores: -s log of the mean of exp(-score / s), s = {number}",
        GENERALISED_MEAN: f"generalised mean of calibrated scores: power mean of log(1 + exp(score)), p = {number}",
        MINIMUM: "minimum of calibrated scores",
    }
    if is_sum(scale):
        of = "ranks" if scale == RANK else "calibrated scores"
        return f"weighted mean of {of}, weights: {_words(delivered['method'])}"
    return f"{formulas[kind]}; no weights are chosen"


def _summary(result: dict[str, Any], tables: int) -> str:
    """What was delivered, which may be less than the system's file hoped for."""
    weights = result["delivered"]["weights"]
    used = [f"{s}/{c}" for s, configurations in weights.items() for c, weight in configurations.items() if weight]
    of = sum(map(len, weights.values()))
    return f"{len(used)} of {of} configurations, {tables} score tables: {', '.join(used)}"


def _listed(texts: Iterable[str]) -> str | None:
    return "; ".join(dict.fromkeys(texts)) or None


def _words(name: str) -> str:
    return name.replace("_", " ")


def _augmentations(spec: AugmentationSpec) -> Iterator[str]:
    """Names of the augmentations that are on."""
    return (_words(name) for name, value in spec if value)


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
    networks = {_network(b): _size(b) for b in branches}
    passes = {(_network(b), b.channel): _size(b) for b in branches}
    macs = sum(passes.values()) * PATCHES_PER_SECOND * CLIP_SECONDS
    return {"total_parameters": sum(networks.values()), "MACS": f"{macs / 1e9:.3g} G"}


def _network(spec: BranchSpec) -> object:
    return spec.backbone.path if spec.strategy.name in ("frozen", "head") else spec


def _size(spec: BranchSpec) -> int:
    return PARAMETERS.get(spec.backbone.path, BASE_PARAMETERS)


def _resources(branches: list[BranchSpec]) -> Iterator[dict[str, Any]]:
    """Every file of weights from outside, by its name and digest; where it lies here is nobody's business."""
    files: dict[FileSpec, str] = {b.backbone: "pre-trained model BEATs" for b in branches}
    for b in branches:
        if b.masked_prediction is not None:
            files |= dict.fromkeys(b.masked_prediction.tokenizers, "acoustic tokenizer of BEATs")
    outside = {(PurePosixPath(f.path).name, f.sha256): kind for f, kind in files.items() if not _made_here(f)}
    for (name, sha256), kind in outside.items():
        yield {"name": kind, "file": name, "sha256": sha256, "reference": _BEATS}


def _made_here(file: FileSpec) -> bool:
    return file.path in BUILT_IN or file.path.startswith("random:")


def _results(machines: dict[str, dict[str, float | None]] | None) -> dict[str, Any]:
    return {
        machine: {cell: None if (value := values[cell]) is None else round(value, 2) for cell in CELLS}
        for machine, values in (machines or {}).items()
    }
