"""The plan: which branches the systems need, each once, and what identifies them.

A branch is identified by its spec, its seed, its training clips and `TRAINING_VERSION`; its embeddings by the branch
and `EMBEDDING_VERSION`; a score table by these, the embedding, the detector, `SCORING_VERSION` and the clips in it. So
another detector, or test clips that come later, train nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, NamedTuple

from pydantic import BaseModel

from branches.data.dataset import Dataset
from branches.spec import (
    EMBEDDING_VERSION,
    LOG_MEL,
    PROJECTION,
    TRAINING_VERSION,
    BackboneSpec,
    BandStatisticsSpec,
    BranchSpec,
    EmbeddingSpec,
    FrozenSpec,
    PatchesSpec,
)
from fusion.hierarchy import Tree
from orchestrator.system import ConfigurationSpec, SystemSpec
from scoring.detectors import SCORING_VERSION, DetectorSpec, MahalanobisSpec


@dataclass(frozen=True)
class Scoring:
    """How a score table is made: what is taken from a branch's network, and the detector that sees it."""

    embedding: EmbeddingSpec
    detector: DetectorSpec

    @property
    def name(self) -> str:
        """For files: the detector's, after that of an embedding which is not the default: `patches-band_mean.knn`."""
        return ".".join(filter(None, [embedding_name(self.embedding), _name(self.detector, self.detector.name)]))

    @property
    def identity(self) -> list[Any]:
        """What counts for the table; nothing of an embedding which is the default."""
        taken = [] if self.embedding == PROJECTION else [identity(self.embedding)]
        return [identity(self.detector), *taken]


class Use(NamedTuple):
    """A score table as a system knows it: its name `sub-system/configuration/seed`; the baseline's has no system."""

    system: str
    name: str
    scoring: Scoring


@dataclass(frozen=True)
class Branch:
    """One training, and the score tables that configurations make of its network.

    clips: fingerprint of the data set that its tables are of
    """

    branch_id: str
    config_id: str
    spec: BranchSpec
    uses: tuple[Use, ...]
    clips: str = ""

    @property
    def name(self) -> str:
        """The training's, for people: that of its first table."""
        return self.uses[0].name

    @property
    def names(self) -> dict[str, list[str]]:
        """What its score tables are called, by the names of their files."""
        return {
            scoring.name: list(dict.fromkeys(use.name for use in self.uses if use.scoring == scoring))
            for scoring in self.scorings
        }

    @property
    def systems(self) -> tuple[str, ...]:
        """The systems that need it."""
        return tuple(dict.fromkeys(use.system for use in self.uses if use.system))

    @property
    def scorings(self) -> tuple[Scoring, ...]:
        """How its tables are made, each once."""
        return tuple(dict.fromkeys(use.scoring for use in self.uses))

    @property
    def embeddings(self) -> tuple[EmbeddingSpec, ...]:
        """What is taken from its network, each once."""
        return tuple(dict.fromkeys(scoring.embedding for scoring in self.scorings))

    @property
    def embeddings_id(self) -> str:
        """Identifies its embeddings of the data set's clips."""
        return digest([self.branch_id, EMBEDDING_VERSION, self.clips])

    @property
    def tables(self) -> dict[str, str]:
        """What identifies its score tables, by their names."""
        parts = [digest([self.branch_id, EMBEDDING_VERSION]), SCORING_VERSION, self.clips]
        return {s.name: digest([*parts, *s.identity]) for s in self.scorings}


@dataclass(frozen=True)
class Plan:
    """All branches of the systems, and each system's tree of tables named `<branch_id>/[<embedding>.]<detector>`.

    baseline: the table that every system is compared with, of a branch that needs no network; it may be in no system
    """

    branches: tuple[Branch, ...]
    trees: dict[str, Tree]
    baseline: str = ""

    def tables(self, system: str) -> dict[str, str]:
        """The tables of a system, or of the baseline (""), by what they are called: `sub-system/configuration/seed`."""
        uses = [(branch, use) for branch in self.branches for use in branch.uses if use.system == system]
        return {use.name: f"{branch.branch_id}/{use.scoring.name}" for branch, use in uses}


def embedding_name(embedding: EmbeddingSpec) -> str:
    """For files, such as `patches-poolingmean`; empty for what the training head gives."""
    return "" if embedding == PROJECTION else _name(embedding, embedding.source)


def _name(settings: BaseModel, kind: str) -> str:
    """A kind with the settings that are not the default: `mahalanobis`, `knn-k4`."""
    words = [kind]
    for key, value in sorted(identity(settings).items()):
        if isinstance(value, dict):
            words += [f"{key}{value['name']}", *(f"{key}_{k}{v}" for k, v in sorted(value.items()) if k != "name")]
        elif key != "name":
            words.append(key + ("_".join(map(str, value)) if isinstance(value, list) else str(value)))
    return "-".join(words)


# Mean and deviation over time of log-mels: what a training has to be better than. Standardised, since a few loud bands
# would rule otherwise.
BASELINE = ConfigurationSpec(
    branch=BranchSpec(backbone=BackboneSpec(path=LOG_MEL), strategy=FrozenSpec()),
    embedding=PatchesSpec(pooling=BandStatisticsSpec()),
    detector=MahalanobisSpec(standardised=True),
)


def make_plan(systems: Sequence[SystemSpec], dataset: Dataset | None) -> Plan:
    """Collect the branches of all systems and the baseline on a data set.

    Without a data set there is no baseline, and ids are good within this plan only.
    """
    branches: dict[str, Branch] = {}
    trees: dict[str, Tree] = {}
    for system in systems:
        trees[system.name] = {
            subsystem: {
                name: [
                    _add(branches, _branch(c, seed, system.name, f"{subsystem}/{name}/{seed}", dataset))
                    for seed in c.seeds
                ]
                for name, c in configurations.items()
            }
            for subsystem, configurations in system.subsystems.items()
        }
    baseline = _add(branches, _branch(BASELINE, 0, "", "baseline/log_mel/0", dataset)) if dataset else ""
    return Plan(tuple(branches.values()), trees, baseline)


def _add(branches: dict[str, Branch], branch: Branch) -> str:
    """Put a branch with one table among those found, and name its table."""
    planned = branches.setdefault(branch.branch_id, branch)
    branches[branch.branch_id] = replace(planned, uses=tuple(dict.fromkeys([*planned.uses, *branch.uses])))
    return table_names(branch)[0]


def table_names(branch: Branch) -> list[str]:
    """Names of a branch's score tables in the plan's trees."""
    return [f"{branch.branch_id}/{scoring.name}" for scoring in branch.scorings]


def without(plan: Plan, tables: Set[str]) -> Plan:
    """The plan without these score tables; a system of which nothing is left has an empty tree."""

    def kept(node: Any) -> Any:
        if isinstance(node, dict):
            return {name: inner for name, below in node.items() if (inner := kept(below))}
        return [table for table in node if table not in tables]

    trees: dict[str, Tree] = {name: kept(tree) for name, tree in plan.trees.items()}
    return replace(plan, trees=trees, baseline="" if plan.baseline in tables else plan.baseline)


def _branch(c: ConfigurationSpec, seed: int, system: str, name: str, dataset: Dataset | None) -> Branch:
    spec = c.branch.model_copy(update={"seed": seed})
    config = identity(c.branch)
    return Branch(
        branch_id=digest([config, seed, dataset and dataset.training_fingerprint(spec), TRAINING_VERSION]),
        config_id=digest(config),
        spec=spec,
        uses=(Use(system, name, Scoring(c.embedding, c.detector)),),
        clips=dataset.fingerprint if dataset else "",
    )


def identity(settings: Any) -> Any:
    """Settings as they count, as a JSON value: a file with a digest by its content, not by where it lies.

    What has its default is left out, so that a setting that is added later changes no identity. (A default that is
    changed later does not either: then `TRAINING_VERSION` or `SCORING_VERSION` is to be raised.)
    """
    if isinstance(settings, BaseModel):
        moved = {"path"} if getattr(settings, "sha256", None) else set()
        default = {
            name: field.get_default(call_default_factory=True) for name, field in type(settings).model_fields.items()
        }
        return {
            name: identity(value)
            for name, value in settings
            if name == "name" or (name not in moved and value != default[name])
        }
    if isinstance(settings, (list, tuple)):
        return [identity(value) for value in settings]
    return settings


def digest(value: Any) -> str:
    """16 hex digits of the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def versions() -> list[int | str]:
    """What must be the same on all nodes, so that the same ids stand for the same numbers."""
    return [version("tutti-asd"), TRAINING_VERSION, EMBEDDING_VERSION, SCORING_VERSION]
