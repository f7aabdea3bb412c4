"""The file of a checkpoint, local or fetched, after a look at its digest; loads no torch."""

import shutil
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

from branches.backbones import BACKBONES, Backbone, cache_folder, cached, fetched
from branches.spec import FileSpec
from scoring.atomic import atomic, link_or_copy
from scoring.errors import InputError
from scoring.table import file_sha256

_MIN_DIGEST, _WHOLE = 8, 64
SMALL = Path(__file__).parent / "beats" / "small.pt"
# Of that file: with a new network come a new digest and other branches.
SMALL_SHA256 = "d184fd97fa7063727bb7b87e5d6b4003b90f25978c98c7a07719287fe40ea624"


def is_remote(path: str) -> bool:
    """Whether a checkpoint is given by a name or URI that is fetched; a `file://` one is a path, percent-encoded."""
    return path in BACKBONES or ("://" in path and not path.startswith("file://"))


def file_digest(file: Path) -> str:
    """SHA-256 of a checkpoint's `parts` together: weights are another network with another `config.json`."""
    return file_sha256(*parts(file))


def parts(file: Path) -> list[Path]:
    """The files of a checkpoint: itself, and if it is of safetensors, `config.json` beside it where there is one."""
    config = file.with_name("config.json")
    return [file, config] if is_safetensors(file) and config.is_file() else [file]


def is_safetensors(file: Path) -> bool:
    """Whether a file is of the safetensors format: the length of a header in JSON, and the header."""
    with suppress(OSError), file.open("rb") as stream:
        return stream.read(9)[8:] == b"{"
    return False


def local_file(path: str, sha256: str | None, fetch: bool = True) -> Path:
    """`path` itself if it is local, else its copy in the cache; its digest begins with `sha256`.

    fetch: whether what is not in the cache is downloaded, or an error
    """
    digest = _checked(sha256)
    if path in BACKBONES:
        return _published(BACKBONES[path], digest, fetch)
    if is_remote(path):
        return _copy(path, digest, fetch)
    if path == "small":
        return _shipped(digest)
    file = Path(unquote(path.removeprefix("file://")) if path.startswith("file://") else path)
    if not file.is_file():
        name = f"{file.stem}, which is fetched" if file.stem in BACKBONES else "a name that `tutti backbones` lists"
        raise InputError(f"{path}: no such file; give the path or URI of a checkpoint, or {name}")
    if digest:
        _check(path, file_digest(file), digest)
    return file


def stated_digest(path: str, sha256: str | None) -> str | None:
    """The whole digest of what is fetched, if it is known before; InputError if `sha256` means another file."""
    digest = _checked(sha256)
    if path in BACKBONES and (published := BACKBONES[path].sha256):
        _check(path, published, digest)
        return published
    return digest if is_remote(path) and len(digest) == _WHOLE else None


def _checked(sha256: str | None) -> str:
    """A digest, or its first digits, in lower case; empty for none."""
    digest = (sha256 or "").lower()
    if sha256 is not None and (
        len(digest) not in range(_MIN_DIGEST, _WHOLE + 1) or set(digest) - set("0123456789abcdef")
    ):
        raise InputError(f"sha256 {sha256!r} must be {_MIN_DIGEST} to {_WHOLE} hex digits")
    return digest


def _published(backbone: Backbone, digest: str, fetch: bool) -> Path:
    """The cached file of a checkpoint with a name."""
    file, wanted = cached(backbone.name), stated_digest(backbone.name, digest or None) or digest
    if not fetch and not file.exists():
        raise InputError(f"{backbone.name} is not in the cache, a run fetches it ({backbone.size / 1e6:.0f} MB)")
    fetched(backbone)
    if not (actual := file_digest(file)).startswith(wanted):
        raise InputError(f"{file} has sha256 {actual}, not {wanted}; remove it, and it is fetched anew")
    return file


def _shipped(wanted: str) -> Path:
    """The file of `small`, which must be the one that this version of tutti was released with."""
    digest = file_sha256(SMALL) if SMALL.is_file() else "none"
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
    folder = cache_folder()
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
        sha256 = file_sha256(part)
        _check(uri, sha256, digest)
        return part.replace(folder / f"{sha256}.pt")


def lay_out(files: Iterable[FileSpec], folder: Path) -> None:
    """Put what was fetched into a folder that serves as cache where there is no network: a link, or a copy.

    What is given by its path is expected to be everywhere under it.
    """
    for file in {local_file(file.path, file.sha256) for file in files if is_remote(file.path)}:
        target = folder / file.name
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with atomic(target) as temporary:
                link_or_copy(file, temporary)
