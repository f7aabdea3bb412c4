"""What the connected cluster has, and what of it falls to a branch."""

from __future__ import annotations

from collections.abc import Mapping

from scoring.errors import InputError

GIB = 1 << 30


def gpus_of_a_branch(wanted: float | None) -> float:
    """GPUs that a branch takes: what is wanted, or by default one where the connected cluster has any."""
    return wanted if wanted is not None else min(1.0, max(node.get("GPU", 0.0) for node in _nodes()))


def require(resources: Mapping[str, float]) -> None:
    """`InputError` if no node of the connected cluster can ever give this; Ray itself would wait for ever."""
    if not slots(resources):
        most = {name: max(node.get(name, 0.0) for node in _nodes()) for name in resources}
        wanted, found = (", ".join(map(amount, r, r.values())) for r in (resources, most))
        raise InputError(f"a branch needs {wanted} on one node, the largest node has {found}; lower the request")


def slots(resources: Mapping[str, float]) -> int:
    """How many branches with these resources the connected cluster can run at once."""
    return sum(_slots(node, resources) for node in _nodes())


def memory_share(resources: Mapping[str, float]) -> float:
    """Bytes that fall to a branch if every node runs as many as its other resources allow; the least of all nodes."""
    shared = [node.get("memory", 0.0) // count for node in _nodes() if (count := _slots(node, resources))]
    return min(shared, default=0.0)


def largest_memory(resources: Mapping[str, float]) -> float:
    """The most bytes of a node that has these other resources."""
    return max((node.get("memory", 0.0) for node in _nodes() if _slots(node, resources)), default=0.0)


def _nodes() -> list[dict[str, float]]:
    """Resources of each living node of the connected cluster, as Ray counts them; memory in bytes."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _slots(node: Mapping[str, float], resources: Mapping[str, float]) -> int:
    # Ray counts in ten-thousandths; a third of a GPU fits three times.
    return min(int((node.get(name, 0.0) + 1e-4) // value) for name, value in resources.items() if value)


def amount(name: str, value: float) -> str:
    """`2 CPU`, `3.5 GiB memory`."""
    return f"{value / GIB:.3g} GiB memory" if name == "memory" else f"{value:g} {name}"
