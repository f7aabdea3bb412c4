"""A connection to Ray for the time of a `with` block."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster.processes import end_at_once, sigterm_blocked, starting
from scoring.errors import InputError

log = logging.getLogger(__name__)

TOKEN_REMEDY = (
    "if it has a token, export RAY_AUTH_MODE=token and the cluster's own RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH), or "
    "RAY_AUTH_MODE=disabled where the cluster has none"
)
START_REMEDY = "free memory and /dev/shm; `ray stop` ends what an earlier session left; a RAY_TMPDIR must be short"
# A socket's path has at most 107 bytes, of which Ray takes 68 below this folder; schedulers' own ones are longer.
LONGEST_FOLDER = 39
_PACKAGES = Path(__file__).resolve().parents[1]
_OPTIONS: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}


def prepare_environment(address: str) -> None:
    """Set what Ray reads when it is first imported, and its processes inherit; what is set already stays.

    Authentication is always explicit, since Ray's own default differs between `ray.init()` and an address. A local
    Ray can be reached from the network, so it gets a token that only this process and its workers know. For a
    running cluster a token in `RAY_AUTH_TOKEN` or `RAY_AUTH_TOKEN_PATH` is used; without one it is taken as open.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's coming default; silences a warning
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # MLflow is the record
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    if address == "local" and len(os.fsencode(tempfile.gettempdir())) > LONGEST_FOLDER:
        os.environ.setdefault("RAY_TMPDIR", "/tmp")
    if address == "local" and "RAY_AUTH_MODE" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    given = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    os.environ.setdefault("RAY_AUTH_MODE", "token" if given else "disabled")


@contextmanager
def session(address: str = "local", num_cpus: int | None = None) -> Iterator[None]:
    """Connect to Ray at `address`, or start it on this machine for `local`; disconnect at the end.

    `auto` is the cluster that this machine or the surrounding job is part of. A local Ray has no dashboard. Ray must
    not have been imported before, see `prepare_environment`. `InputError` if nothing answers there, or Ray does not
    start here.
    """
    prepare_environment(address)
    check_address(address)
    log.info("starting Ray here" if address == "local" else f"connecting to Ray at {address}")
    import ray

    # Ray puts the working directory before all else on its workers' path, where a script of the user's called
    # `scoring.py` would be taken for the package. In the packages' own folder there is none.
    with chdir(_PACKAGES):
        _open(address, num_cpus)
    try:
        yield
    finally:
        ray.shutdown()


def _open(address: str, num_cpus: int | None) -> None:
    """Start Ray here or connect to it; what a busy machine may let time out at its start is tried twice."""
    import ray

    options = {"num_cpus": num_cpus, "include_dashboard": False} if address == "local" else {}
    again = address.startswith(("local", "ray://"))  # where a head starts a server for each client
    while True:
        try:
            with starting(), sigterm_blocked():
                ray.init(address=address, **options, **_OPTIONS)
            break
        except Exception as error:  # Ray raises whatever its parts do
            # By a head's own port Ray does not say whether the token was at fault.
            refusal = (
                f"Ray does not start here ({first_line(error)}); {START_REMEDY}"
                if address == "local"
                else f"no connection to Ray at {address} ({first_line(error)}); start a cluster, use --address local, "
                f"or, {TOKEN_REMEDY}"
            )
            if not again:
                raise InputError(refusal) from None
            log.warning("%s; trying once more", refusal)
            again = False
    if address == "local":
        end_at_once()


def first_line(error: Exception) -> str:
    """What an error says, without what follows: Ray's messages come with tracebacks and hints."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def require_server(address: str, kind: str, remedy: str) -> None:
    """`InputError` if nothing listens at an address (`host:port` or a URI); clients would try for minutes."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        port = parts.port or {"https": 443, "ray": 10001}.get(parts.scheme, 80)
        socket.create_connection((parts.hostname or "", port), timeout=5).close()
    except (OSError, ValueError) as error:
        raise InputError(f"no {kind} answers at {address} ({error}); {remedy}") from None


def check_address(address: str) -> None:
    """`InputError` if nothing listens at the address of a Ray cluster; see `require_server`."""
    if address.startswith(("http://", "https://")):
        raise InputError(f"{address} is a dashboard, to which jobs are sent: use `tutti submit`, or give HOST:6379")
    if address not in ("local", "auto"):
        require_server(address, "Ray cluster", "start one or use --address local")
