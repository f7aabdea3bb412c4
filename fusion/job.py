"""Fusion searches as Ray tasks: the scores go to the object store once, each search is one task."""

from __future__ import annotations

from collections.abc import Iterable

import ray

from fusion.hierarchy import Tree
from fusion.labelled import LabelledScores
from fusion.search import Task, search_weights


def run_on_ray(scores: LabelledScores, tree: Tree, tasks: Iterable[Task]) -> list[dict[str, float]]:
    """The runner for `fusion.search.fuse` on the connected Ray cluster."""
    shared = ray.put((scores, tree))
    return ray.get([_search.remote(shared, task) for task in tasks])


@ray.remote(num_cpus=1)  # type: ignore[untyped-decorator]
def _search(shared: tuple[LabelledScores, Tree], task: Task) -> dict[str, float]:
    scores, tree = shared
    return search_weights(scores, tree, task)
