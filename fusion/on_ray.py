"""Fusion searches as Ray tasks: the scores go to the object store once, each set of machines left out is one task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fusion.tasks import Found, Machines, Problem, search_weights


def run_on_ray(problem: Problem, tasks: Sequence[Machines]) -> Iterator[tuple[Machines, Found]]:
    """The runner for `fusion.fuse` on the connected Ray cluster."""
    import ray  # which reads its environment when it is imported: only after a session has set it up

    search, shared = ray.remote(num_cpus=1)(search_weights), ray.put(problem)
    running = {search.remote(shared, left_out): left_out for left_out in tasks}
    while running:
        finished, _ = ray.wait(list(running))
        for reference in finished:
            yield running.pop(reference), ray.get(reference)
