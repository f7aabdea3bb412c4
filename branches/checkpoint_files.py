"""The file of a checkpoint, local or fetched, after a look at its digest; loads no torch."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from urllib.parse import unquote

from scoring.errors import InputError

_MIN_DIGEST = 8
SMALL = Path(__file__).parent / "beats" / "small.pt"
# Of that file: with a new network come a new digest and other branches.
SMALL_SHA256 = "d184fd97fa7063727bb7b87e5d6b4003b90f25978c98c7a07719287fe40ea624"


def is_remote(path: str) -> bool:
    """Whether a checkpoint is given by a URI that is fetched; a `file://` one is a path, percent-encoded."""
    return "://" in path and not path.startswith("file://")


def local_file(path: str, sha256: str | None, fetch: bool = True) -> Path:
    """`path` itself if it is local, else its copy in the cache; its digest begins with `sha256`.

    fetch: whether what is not in the cache is downloaded, or an error
    """
    digest = (sha256 or "").lower()
    if sha256 is not None and (len(digest) not in range(_MIN_DIGEST, 65) or set(digest) - set("0123456789abcdef")):
        raise InputError(f"sha256 {sha256!r} must be {_MIN_DIGEST} to 64 hex digits")
    if is_remote(path):
        return _copy(path, digest, fetch)
    if path == "small":
        return _shipped(digest)
    file = Path(unquote(path.removeprefix("file://")) if path.startswith("file://") else path)
    if not file.is_file():
        raise InputError(f"{path}: no such file; give a BEATs checkpoint's path or URI, or the name small or tiny")
    if digest:
        with file.open("rb") as stream:
            _check(path, hashlib.file_digest(stream, "sha256").hexdigest(), digest)
    return file


def _shipped(wanted: str) -> Path:
    """The file of `small`, which must be the one that this version of tutti was released with."""
    digest = hashlib.sha256(SMALL.read_bytes()).hexdigest() if SMALL.is_file() else "none"
    if digest != SMALL_SHA256:
        raise InputError(f"small: {SMALL} is not the file that comes with tutti; reinstall tutti")
    if not digest.startswith(wanted):
        raise InputError(f"small has sha256 {digest}, not {wanted}…: it is of another version of tutti")
    return SMALL


def _check(path: str, digest: str, wanted: str) -> None:
    if not digest.startswith(wanted):
        raise InputError(f"{path} has sha256 {digest}, not {wanted}…; fetch the right file or correct the digest")


def _copy(uri: str, digest: str, fetch: bool) -> Path:
    """The cached copy of a remote file; the copy's name is its whole digest."""
    folder = _cache_folder()
    cached = sorted(folder.glob(f"{digest}*.pt")) if digest else []
    if cached:
        return cached[0]
    if not fetch:
        raise InputError(f"{uri} is not in the cache, a run fetches it")
    import fsspec  # type: ignore[import-untyped]  # a tenth of a second, which local files need not wait for

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="fetch-") as temporary:
        part = Path(temporary) / "part"
        try:
            with fsspec.open(uri, "rb") as source, part.open("wb") as target:
                shutil.copyfileobj(source, target, length=2**20)
        except Exception as error:  # each protocol has its own exceptions
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{uri} cannot be read: {reason}") from error
        with part.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        _check(uri, sha256, digest)
        return part.replace(folder / f"{sha256}.pt")


def _cache_folder() -> Path:
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TUTTI_CACHE") or Path(user) / "tutti")
