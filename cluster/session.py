"""A connection to Ray for the time of a `with` block."""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from shutil import disk_usage
from typing import Any
from urllib.parse import urlsplit

import psutil

from cluster.processes import end_at_once, signals_blocked, starting
from scoring.errors import InputError

log = logging.getLogger(__name__)

TOKEN_REMEDY = (
    "if it has a token, export RAY_AUTH_MODE=token and the cluster's own RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH), or "
    "RAY_AUTH_MODE=disabled where the cluster has none"
)
_ROOM = 100 << 20  # bytes; with less free in its folder, in /dev/shm or in memory Ray times out without a reason
_VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)")
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
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # its own waits for branches, which a kill ends as well
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # would upload all packages for `uv run tutti`
    if address == "local":
        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own 15 starves beside other work
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
            with starting(), signals_blocked():
                ray.init(address=address, **options, **_OPTIONS)
            break
        except Exception as error:  # Ray raises whatever its parts do
            refusal = _refusal(address, error)
            if not again or _VERSIONS.search(str(error)):
                raise InputError(refusal) from None
            log.warning("%s; trying once more", refusal)
            again = False
    if address == "local":
        end_at_once()


def _refusal(address: str, error: Exception) -> str:
    """Why there is no session, and what to do, in one line."""
    if address == "local":
        return f"Ray does not start here ({first_line(error)}); {_start_remedy(error)}"
    if len(versions := _VERSIONS.findall(str(error))) == 2:
        theirs, ours = (f"Ray {ray} (Python {python})" for ray, python in versions)
        return f"the cluster at {address} has {theirs}, this is {ours}; install the same versions on both"
    # By a head's own port Ray does not say whether the token was at fault.
    remedy = f"start a cluster, use --address local, or, {TOKEN_REMEDY}"
    return f"no connection to Ray at {address} ({first_line(error)}); {remedy}"


def _start_remedy(error: Exception) -> str:
    """What helps where Ray does not start: its reason is in its text or in the state of the machine, or in its logs."""
    folder = os.environ.get("RAY_TMPDIR", tempfile.gettempdir())
    another = "name another one, with a short path: export RAY_TMPDIR=FOLDER"
    if "AF_UNIX" in str(error):
        return "its sockets need a short folder: export RAY_TMPDIR=/tmp"
    if full := [place for place in (folder, "/dev/shm") if Path(place).exists() and disk_usage(place).free < _ROOM]:
        return f"{' and '.join(full)} is full: make room" + f", or {another}" * (folder in full)
    if "in use" in str(error):
        return "`ray stop` ends what an earlier session left, and frees its ports"
    if "emory" in str(error) or psutil.virtual_memory().available < _ROOM:
        return "free memory and /dev/shm"
    if isinstance(error, OSError):
        return f"{folder} must be a folder that you may write to, or {another}"
    return f"`ray stop` ends what an earlier session left; {folder}/ray/session_latest/logs may say more"


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
