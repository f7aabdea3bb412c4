"""Sampling: the clips that rare conditions lack, made from references and checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from branches.data.dataset import class_labels
from branches.generator.conditions import Condition, rare_conditions
from branches.generator.flow import sample
from branches.generator.generated_set import SCHEMA, GeneratedSet
from branches.generator.judge import VERDICTS, Judgement, SampleCheck
from branches.generator.learning import Generator
from branches.generator.real_clips import RealClips, band_statistics
from scoring.errors import InputError


def generate(generator: Generator, wanted: Mapping[Condition, int] | None = None) -> GeneratedSet:
    """Sample and check; the same generator gives the same set on a CPU.

    Parameters
    ----------
    generator: trained
    wanted: samples of each condition; by default what the rare ones lack (`rare_conditions`)

    Raises
    ------
    InputError
        If a condition has a word that the generator does not know, or is the only one of its machine.
    """
    spec, clips = generator.spec, generator.clips
    if wanted is None:
        wanted = rare_conditions(clips.conditions, spec.fill)
    conditions = [condition for condition, n in wanted.items() for _ in range(n)]
    references = choose_references(clips.conditions, wanted, spec.seed)
    features, statistics = (np.concatenate(p) for p in zip(*_batches(generator, conditions, references), strict=True))
    check = SampleCheck(clips, generator.statistics, spec.copy_below, spec.far_above)
    judgement = check.judge(statistics, conditions)
    summary = {"spec": spec.model_dump(), "conditions": _summary(clips, conditions, judgement, check.accuracy())}
    return GeneratedSet(features, _rows(clips, conditions, references, judgement), summary)


def choose_references(real: Sequence[Condition], wanted: Mapping[Condition, int], seed: int) -> NDArray[np.int64]:
    """A training clip for each sample, in the order of `wanted`: (n,) positions in `real`.

    Clips of other conditions of the same machine and section, none twice before all had their turn. A clip of the
    condition itself would come back as a near copy: the mean over hundreds of frames survives the noise. Raises
    `InputError` where there is no other condition.
    """
    rng = np.random.default_rng([seed, 2])
    groups, names = np.array([c.group for c in real]), np.array([str(c) for c in real])
    references = []
    for condition, n in wanted.items():
        others = np.flatnonzero((groups == condition.group) & (names != str(condition)))
        if not len(others):
            raise InputError(f"{condition} has no other condition beside it to make samples from")
        references.append(np.resize(rng.permutation(others), n))
    return np.concatenate(references)


def _batches(
    generator: Generator, conditions: list[Condition], references: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.float16], NDArray[np.float32]]]:
    """Samples (b, frames, 128) and their band statistics (b, 3, 128)."""
    spec, clips, device = generator.spec, generator.clips, generator.device
    noise_of = torch.Generator().manual_seed(spec.seed)
    rng = np.random.default_rng([spec.seed, 3])
    for first in range(0, len(conditions), spec.batch_size):
        batch, chosen = conditions[first : first + spec.batch_size], references[first : first + spec.batch_size]
        mean, std = generator.scale_of([clips.conditions[i] for i in chosen])
        reference = (clips.crops(chosen, rng.integers(clips.last_start(chosen) + 1), device) - mean) / std
        mean, std = generator.scale_of(batch)
        noise = torch.randn(reference.shape, generator=noise_of).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            x = sample(
                generator.network, reference, noise, generator.words(batch),
                spec.strength, spec.guidance, spec.sampling_steps,
            )  # fmt: skip
        features = x * std + mean
        yield features.cpu().numpy().astype(np.float16), band_statistics(features)


def _rows(
    clips: RealClips, conditions: list[Condition], references: NDArray[np.int64], judgement: Judgement
) -> pa.Table:
    names = np.array(clips.index["clip"].to_pylist(), object)
    columns: dict[str, Any] = {
        "machine": [c.machine for c in conditions],
        "section": [c.section for c in conditions],
        "domain": [c.domain for c in conditions],
        "attributes": [list(c.attributes) for c in conditions],
        "class": [""] * len(conditions),
        "reference": names[references],
        "nearest": names[judgement.nearest],
        "nearest_distance": judgement.nearest_distance,
        "own_distance": judgement.own_distance,
        "heard": judgement.heard,
        "verdict": judgement.verdict,
    }
    rows = pa.table(columns, SCHEMA)
    labels, classes = class_labels(rows)
    position = SCHEMA.get_field_index("class")
    return rows.set_column(position, SCHEMA.field(position), pa.array(np.array(classes, object)[labels], pa.string()))


def _summary(
    clips: RealClips, conditions: list[Condition], judgement: Judgement, accuracy: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """For each condition: how many clips and samples there are, the verdicts, and how well it is heard at all."""
    names, real = np.array([str(c) for c in conditions], object), Counter(map(str, clips.conditions))
    summary = {}
    for name in dict.fromkeys(names):
        rows = names == name
        verdicts = Counter(judgement.verdict[rows])
        summary[name] = {
            "clips": real[name],
            "samples": int(rows.sum()),
            **{verdict: verdicts[verdict] for verdict in VERDICTS},
            "heard_right": float((judgement.heard[rows] == name).mean()),
            "heard_right_of_held_out_clips": accuracy.get(name),
        }
    return summary
