"""A connection to Ray for the time of a `with` block."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from scoring.errors import InputError

# Ray reads these when it is imported, and its processes inherit them.
# Authentication is set on purpose: Ray's own default differs between `ray.init()` and an explicit address.
_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextmanager
def session(address: str = "local", num_cpus: int | None = None) -> Iterator[None]:
    """Connect to Ray at `address`, or start it on this machine for `local`; disconnect at the end.

    A local Ray listens on the loopback interface only and has no dashboard.

    Raises
    ------
    InputError
        If nothing answers at `address`.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray  # here, since it reads the environment when imported

    common = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
    if address == "local":
        ray.init(address="local", num_cpus=num_cpus, _node_ip_address="127.0.0.1", include_dashboard=False, **common)
    else:
        try:
            ray.init(address=address, **common)
        except (ConnectionError, ValueError) as error:
            raise InputError(
                f"no Ray cluster answers at {address} ({error}); start one or use --address local"
            ) from None
    try:
        yield
    finally:
        ray.shutdown()


def require(resources: dict[str, float]) -> None:
    """Refuse what no node of the connected cluster can ever give; Ray itself would wait for ever.

    Raises
    ------
    InputError
        Naming the resource and the most that one node has.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(name, 0) >= amount for name, amount in resources.items()) for node in nodes):
        wanted = ", ".join(f"{amount:g} {name}" for name, amount in resources.items())
        most = ", ".join(f"{max(node.get(name, 0) for node in nodes):g} {name}" for name in resources)
        raise InputError(f"a branch needs {wanted} on one node, the largest node has {most}; lower the request")
