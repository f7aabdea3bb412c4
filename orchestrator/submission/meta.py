"""The meta file of a system, from its result and from what the authors say."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import PurePosixPath
from typing import Any

from branches.spec import BUILT_IN, LOG_MEL, BranchSpec, FileSpec
from orchestrator.cost import CLIP_SECONDS, PATCHES_PER_SECOND, parameters
from orchestrator.submission.schema import AuthorsFile
from orchestrator.system import ConfigurationSpec, SystemSpec, stored
from scoring.errors import counted
from scoring.metrics import CELLS

log = logging.getLogger(__name__)

_CHANNELS = {
    "near": "near microphone",
    "far": "far microphone",
    "mean": "mean of near and far microphone",
    "cancel": "near microphone, the far one cancelled",
}
# Networks that come with tutti.
_BUILT_IN = {
    LOG_MEL: "log-mels",
    "small": "small (three layers of BEATs' architecture, trained on generated sounds)",
    "tiny": "tiny (two layers of BEATs' architecture with random weights)",
}
# A published checkpoint's name in its path: of the file, or of the folder or repository that OpenBEATs' came in.
_PUBLISHED = re.compile(r"open-?beats[\w.+-]*|(?<![^/])beats[\w.+-]*$", re.IGNORECASE)
# What checkpoints are described in and were trained on, by whether they are of OpenBEATs.
_SOURCES = {
    False: (
        "S. Chen et al., BEATs: Audio Pre-Training with Acoustic Tokenizers, https://arxiv.org/abs/2212.09058",
        {"name": "AudioSet", "url": "https://research.google.com/audioset/"},
    ),
    True: (
        "S. Bharadwaj et al., OpenBEATs: A Fully Open-Source General-Purpose Audio Encoder, "
        "https://arxiv.org/abs/2507.14129",
        {
            "name": "pre-training data of OpenBEATs (environmental sound, music, bioacoustics)",
            "url": "https://arxiv.org/abs/2507.14129",
        },
    ),
}


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
    resources, datasets = _external(branches)
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
                "summary": f"{result['delivers']}, {counted(len(tables), 'score table')}: {', '.join(used)}",
                **_description(used.values(), branches, external=bool(resources)),
                "ensemble_method": f"calibrated scores of all seeds: {result['delivers']}" if len(tables) > 1 else None,
                "ensemble_method_subsystem_count": len(tables),
            },
            "complexity": _complexity(branches),
            "external_resources": resources,
            "external_datasets": datasets,
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


def _description(
    configurations: Collection[ConfigurationSpec], branches: Sequence[BranchSpec], external: bool
) -> dict[str, Any]:
    return {
        "input": _listed(_CHANNELS[b.channel] for b in branches),
        "input_sampling_rate": "16 kHz",
        "front_end": "far-microphone cancellation" if any(b.channel == "cancel" for b in branches) else None,
        "acoustic_features": "log-mel energies, 128 bands, frames of 25 ms every 10 ms",
        "data_augmentation": _listed(_words(name) for b in branches for name, value in b.augmentation if value),
        "embeddings": _listed(_network(b.backbone) for b in branches),
        "machine_learning_method": _listed(map(_training, branches)),
        "aggregation_method": _listed(_words(c.pooling.name) for c in configurations),
        "domain_adaptation_method": None,
        "domain_generalization_method": "reference clips by domain, distances standardised in each",
        "anomaly_detector": _listed(_words(c.detector.name) for c in configurations),
        "decision_making": "0.9 quantile of a gamma distribution fitted to the scores of training clips",
        "attribute_usage": "classes of the training" if any(not b.is_frozen for b in branches) else None,
        "external_data_usage": "pre-trained model" if external else None,
        "development_data_usage": _listed("reference" if b.is_frozen else "fine-tuning, reference" for b in branches),
    }


def _listed(texts: Iterable[str]) -> str | None:
    return "; ".join(dict.fromkeys(texts)) or None


def _words(name: str) -> str:
    return name.replace("_", " ")


def _network(file: FileSpec) -> str:
    """What a network is called, as far as the path of its file tells; where that lies here is nobody's business."""
    unknown = f"BEATs' architecture with weights of {PurePosixPath(file.path).name}"
    return _BUILT_IN.get(file.path) or _published(file) or unknown


def _published(file: FileSpec) -> str:
    """The name of a published network, empty if it is none."""
    name = ([*_PUBLISHED.findall(file.path)] or [""])[-1]
    return re.sub(r"\.(pth?|safetensors)$", "", name)


def _training(spec: BranchSpec) -> str:
    if spec.is_frozen:
        return "frozen embeddings"
    auxiliary = ", masked patch prediction" if spec.masked_prediction is not None else ""
    return f"attribute classification ({_words(spec.objective.name)}, {spec.strategy.name} fine-tuning{auxiliary})"


def _complexity(branches: list[BranchSpec]) -> dict[str, Any]:
    """Parameters, and multiply-accumulates for a clip of ten seconds, of the backbones; None where one is not here.

    Branches that leave the backbone as it is share it, and those on the same channel its pass over a clip too.
    An operation for each parameter and patch is counted, which leaves out the products inside the attention.
    """
    sizes = {path: _parameters(file) for path, file in {b.backbone.path: b.backbone for b in branches}.items()}
    if None in sizes.values():
        return {"total_parameters": None, "MACS": None}
    networks, passes = {}, {}
    for b in branches:
        network = b.backbone.path if b.strategy.name in ("frozen", "head") else b
        networks[network] = passes[network, b.channel] = sizes[b.backbone.path] or 0
    macs = sum(passes.values()) * PATCHES_PER_SECOND * CLIP_SECONDS
    return {"total_parameters": sum(networks.values()), "MACS": f"{macs / 1e9:.3g} G"}


@cache  # so that what is not here is said once for all systems
def _parameters(file: FileSpec) -> int | None:
    """How many a network has; None if its file is not here."""
    number = parameters(file)
    if number is None:
        log.warning("%s: not where the run had it, so total_parameters and MACS stay empty", file.path)
    return number


def _external(branches: Iterable[BranchSpec]) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Every file of weights from outside, by its name and digest, and the data sets that published ones know."""
    files = [b.backbone for b in branches]
    tokenizers = [f for b in branches if b.masked_prediction for f in b.masked_prediction.tokenizers]
    resources, datasets = {}, {}
    for file in [*files, *tokenizers]:
        if file.path in BUILT_IN or file.path.startswith("random:"):
            continue
        name, published = PurePosixPath(file.path).name, _published(file)
        reference, dataset = _SOURCES[published.lower().startswith("open")] if published else (None, None)
        about = {"name": f"weights of {published or name}", "file": name, "sha256": file.sha256, "reference": reference}
        resources[name, file.sha256] = about
        if dataset:
            datasets[dataset["name"]] = dataset
    return [*resources.values()], [*datasets.values()]
