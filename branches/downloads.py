"""Downloads that go on after a cut, from the first of several addresses, and are checked before they get their name.

Proxies are those of the environment (`HTTPS_PROXY`, `NO_PROXY`).
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pooch  # type: ignore[import-untyped]
import requests
from tqdm import tqdm
from urllib3.exceptions import MaxRetryError, ProtocolError, ReadTimeoutError
from urllib3.util import Retry

from scoring.errors import InputError, naming
from scoring.locks import locked

log = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds before all addresses are tried once more. Each byte that arrives begins them anew.
PAUSES = (2.0, 10.0, 30.0, 60.0)
LONGEST_WAIT = 600.0  # that a server may ask for
TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 2**16  # of a longer one, a cut would lose more
_UNREACHABLE = "cannot be reached"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class _Refused(Exception):
    """An address gives something else; asking again would not help."""


def download(target: Path, urls: Sequence[str], digest: str, size: int | None = None) -> Path:
    """Fetch a file to `target`, unless it is there; then it is checked.

    While it is fetched it is called `.NAME.part`; from there another call goes on. Two processes wait for each other.

    urls: addresses of the same file, tried one after another
    digest: `sha256:…` or `md5:…`
    size: in bytes, if it is known

    Raises InputError, in one line with the reason of each address, if none gives a file of this digest or there is no
    room for it, and OSError if `target` cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    with locked(target.with_name(".download.lock")):
        if target.exists():
            _check(target, digest)
        else:
            log.info("fetching %s%s", target.name, f", {size / 1e6:.0f} MB" if size else "")
            attempt = _Download(part, digest, size)
            try:
                with naming(target, part):
                    _first_of(urls, attempt, attempt.arrived)
                    os.replace(part, target)
            except OSError as error:
                if error.errno in _FULL:
                    part.unlink(missing_ok=True)
                raise
            finally:
                if not attempt.arrived():
                    part.unlink(missing_ok=True)
    return target


def _check(file: Path, digest: str) -> None:
    """Raise `InputError` if a file that was here before is another than that which would be fetched."""
    algorithm, _, wanted = digest.partition(":")
    if (actual := pooch.file_hash(str(file), algorithm)) != wanted:
        raise InputError(f"{file} has {algorithm} {actual}, not {wanted}; remove it, and it is fetched anew")


def document(url: str) -> Any:
    """The JSON document at an address; InputError as `download` raises it."""

    def attempt(url: str) -> Any:
        response = requests.get(url, timeout=TIMEOUT)
        response.raise_for_status()
        try:
            return response.json()
        except ValueError:
            raise _Refused("answers with something else than JSON") from None

    return _first_of([url], attempt, lambda: 0)


class _Download:
    """One attempt after another to complete a file."""

    def __init__(self, part: Path, digest: str, size: int | None) -> None:
        self._part, self._size = part, size
        self._algorithm, _, self._digest = digest.partition(":")

    def arrived(self) -> int:
        """Bytes that are here."""
        return self._part.stat().st_size if self._part.exists() else 0

    def __call__(self, url: str) -> None:
        """Fetch what is missing from an address."""
        before = self.arrived()
        if self._size is None or before < self._size:
            self._check_room()
            self._transfer(url)
        if self._size is not None and self.arrived() < self._size:
            raise requests.ConnectionError(f"ended the connection after {self.arrived()} of {self._size} bytes")
        actual = pooch.file_hash(str(self._part), self._algorithm)
        if actual != self._digest:
            self._part.unlink()
            if before:  # by another address, maybe
                raise requests.ConnectionError("gives a part that does not fit what was here")
            raise _Refused(f"gives another file, with {self._algorithm} {actual}")

    def _check_room(self) -> None:
        missing = (self._size or 0) - self.arrived()
        free = shutil.disk_usage(self._part.parent).free
        if missing > free:
            raise InputError(
                f"{self._part.parent}: no room for a download of {missing / 1e6:.0f} MB ({free / 1e6:.0f} MB are free)"
            )

    def _transfer(self, url: str) -> None:
        with self._part.open("ab") as file, ExitStack() as shown:
            here = file.tell()

            def begun(response: requests.Response, **_: Any) -> None:
                if response.ok and response.headers.get("Content-Type", "").startswith("text/html"):
                    raise _Refused("answers with a web page")
                if response.status_code in (requests.codes.ok, requests.codes.requested_range_not_satisfiable):
                    file.truncate(0)  # a server that cannot go on sends the whole
                if response.ok and not response.is_redirect:
                    bar = tqdm(total=1, unit="B", unit_scale=True, disable=None)  # None: shown on a terminal alone
                    fetch.progressbar = shown.enter_context(bar)

            # Compressed on the way, the parts would not fit together.
            headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={here}-"} if here else {})}
            fetch = pooch.HTTPDownloader(chunk_size=_CHUNK, headers=headers, hooks={"response": begun}, timeout=TIMEOUT)
            fetch(url, file, None)


def _first_of(urls: Sequence[str], attempt: Callable[[str], T], arrived: Callable[[], int]) -> T:
    """What `attempt` returns for the first address that does not refuse; after temporary refusals all are tried again.

    arrived: bytes that are here; while they grow, addresses are not given up
    """
    addresses, reasons = list(urls), dict.fromkeys(urls, "")
    pauses, most, connected = iter(PAUSES), arrived(), False
    while addresses:
        wait = 0.0
        for url in tuple(addresses):
            try:
                return attempt(url)
            except _Refused as error:
                reasons[url] = str(error)
                addresses.remove(url)
            except requests.RequestException as error:
                reasons[url] = _reason(error)
                connected = connected or not _is_unreachable(error)
                wait = max(wait, _asked_wait(error))
                if _is_final(error):
                    addresses.remove(url)
        if arrived() > most:
            pauses, most = iter(PAUSES), arrived()
        pause = next(pauses, None)
        # Without any connection to any of them once more is enough.
        if not addresses or pause is None or (not connected and pause > PAUSES[0]):
            break
        pause = max(pause, wait)
        log.warning("%s; trying again in %.0f s", _listed({url: reasons[url] for url in addresses}), pause)
        time.sleep(pause)
    raise InputError(f"cannot be fetched: {_listed(reasons)}")


def _listed(reasons: dict[str, str]) -> str:
    """Each address with its reason; a host that cannot be reached once."""
    lines = [
        (urlsplit(url).hostname if reason == _UNREACHABLE else _short(url), reason) for url, reason in reasons.items()
    ]
    return "; ".join(dict.fromkeys(f"{address} {reason}" for address, reason in lines))


def _short(url: str) -> str:
    """An address without user and query, in which there may be a token."""
    parts = urlsplit(url)
    return f"{parts.netloc.rpartition('@')[2]}{parts.path}"


def _reason(error: requests.RequestException) -> str:
    """What went wrong, in a few words; the connection's own message is a paragraph."""
    if error.response is not None:
        if error.response.status_code == requests.codes.too_many_requests:
            return "limits requests (HTTP 429)"
        return f"answers HTTP {error.response.status_code} {error.response.reason}".rstrip()
    match error:
        case requests.exceptions.ProxyError():
            return "cannot be reached through the proxy"
        case requests.exceptions.SSLError():
            return "has a certificate that is not trusted"
        case ValueError():
            return "is no address"
    match error.args:
        case [MaxRetryError()]:
            return _UNREACHABLE
        case [ReadTimeoutError()]:
            return f"was silent for {TIMEOUT:.0f} s"
        case [ProtocolError()]:
            return "ended the connection"
    return str(error)


def _is_unreachable(error: requests.RequestException) -> bool:
    return any(isinstance(reason, MaxRetryError) for reason in error.args)


def _asked_wait(error: requests.RequestException) -> float:
    """Seconds that a server asks to be left alone."""
    raw = error.response.raw if error.response is not None else None
    return min(Retry().get_retry_after(raw) or 0.0, LONGEST_WAIT) if raw is not None else 0.0


def _is_final(error: requests.RequestException) -> bool:
    """Whether asking once more would get the same answer."""
    if error.response is None:
        return isinstance(error, ValueError)  # no address
    codes = requests.codes
    passing = (codes.request_timeout, codes.too_many_requests, codes.requested_range_not_satisfiable, 425)
    return error.response.status_code < 500 and error.response.status_code not in passing
