"""The meta file of a system, from its result and from what the authors say."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from branches.spec import BUILT_IN, LOG_MEL, BranchSpec
from orchestrator.cost import BASE_PARAMETERS, CLIP_SECONDS, PARAMETERS, PATCHES_PER_SECOND
from orchestrator.submission.schema import AuthorsFile
from orchestrator.system import ConfigurationSpec, SystemSpec, stored
from scoring.metrics import CELLS

_CHANNELS = {
    "near": "near microphone",
    "far": "far microphone",
    "mean": "mean of near and far microphone",
    "cancel": "near microphone, the far one cancelled",
}
# What BEATs was trained on.
_AUDIOSET = {"name": "AudioSet", "url": "https://research.google.com/audioset/"}
_BEATS = "S. Chen et al., BEATs: Audio Pre-Training with Acoustic Tokenizers, https://arxiv.org/abs/2212.09058"


def system_meta(result: Mapping[str, Any], label: str, authors: AuthorsFile) -> dict[str, Any]:
    """The content of a meta file.

    result: as saved in `result.json`; only configurations with a weight count
    """
    system = stored(SystemSpec, result["spec"], f"the result of {result['system']}")
    used = {
        f"{subsystem}/{name}": configuration
        for subsystem, configurations in system.subsystems.items()
        for name, configuration in configurations.items()
        if result["delivered"]["weights"].get(subsystem, {}).get(name)
    }
    tables = [c.branch.model_copy(update={"seed": seed}) for c in used.values() for seed in c.seeds]
    branches = list(dict.fromkeys(tables))
    resources = _resources(branches)
    machines = result["machines"]["in_sample"] or {}
    return {
        "submission": {
            "label": label,
            "name": system.name,
            "abbreviation": system.name[:10],
            **authors.systems.get(system.name, {}),
            "abstract": authors.abstract,
            "authors": authors.authors,
        },
        "system": {
            "description": {
                "summary": f"{result['delivers']}, {len(tables)} score tables: {', '.join(used)}",
                **_description(used.values(), branches),
                "ensemble_method": f"calibrated scores of all seeds: {result['delivers']}" if len(tables) > 1 else None,
                "ensemble_method_subsystem_count": len(tables),
            },
            "complexity": _complexity(branches),
            "external_resources": resources,
            "external_datasets": [_AUDIOSET] if resources else [],
            "source_code": authors.source_code,
        },
        "results": {
            "development_dataset": {
                machine: {cell: rounded(values[cell]) for cell in CELLS} for machine, values in machines.items()
            }
        },
    }


def rounded(value: float | None) -> float | None:
    """A value in per cent as the challenge's tables show it."""
    return None if value is None else round(value, 2)


def _description(configurations: Collection[ConfigurationSpec], branches: Sequence[BranchSpec]) -> dict[str, Any]:
    return {
        "input": _listed(_CHANNELS[b.channel] for b in branches),
        "input_sampling_rate": "16 kHz",
        "front_end": "far-microphone cancellation" if any(b.channel == "cancel" for b in branches) else None,
        "acoustic_features": "log-mel energies, 128 bands, frames of 25 ms every 10 ms",
        "data_augmentation": _listed(_words(name) for b in branches for name, value in b.augmentation if value),
        "embeddings": _listed(map(_network, branches)),
        "machine_learning_method": _listed(map(_training, branches)),
        "aggregation_method": _listed(_words(c.pooling.name) for c in configurations),
        "domain_adaptation_method": None,
        "domain_generalization_method": "reference clips by domain, distances standardised in each",
        "anomaly_detector": _listed(_words(c.detector.name) for c in configurations),
        "decision_making": "0.9 quantile of a gamma distribution fitted to the scores of training clips",
        "attribute_usage": "classes of the training" if any(not b.is_frozen for b in branches) else None,
        "external_data_usage": "pre-trained model" if _resources(branches) else None,
        "development_data_usage": _listed("reference" if b.is_frozen else "fine-tuning, reference" for b in branches),
    }


def _listed(texts: Iterable[str]) -> str | None:
    return "; ".join(dict.fromkeys(texts)) or None


def _words(name: str) -> str:
    return name.replace("_", " ")


def _network(spec: BranchSpec) -> str:
    return "log-mels" if spec.backbone.path == LOG_MEL else "BEATs"


def _training(spec: BranchSpec) -> str:
    if spec.is_frozen:
        return f"frozen {_network(spec)}"
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


def _resources(branches: Iterable[BranchSpec]) -> list[dict[str, Any]]:
    """Every file of weights from outside, by its name and digest; where it lies here is nobody's business."""
    files = [b.backbone for b in branches]
    tokenizers = [f for b in branches if b.masked_prediction for f in b.masked_prediction.tokenizers]
    outside = {
        (PurePosixPath(f.path).name, f.sha256): None
        for f in [*files, *tokenizers]
        if f.path not in BUILT_IN and not f.path.startswith("random:")
    }
    return [{"name": "weights of BEATs", "file": f, "sha256": sha256, "reference": _BEATS} for f, sha256 in outside]
