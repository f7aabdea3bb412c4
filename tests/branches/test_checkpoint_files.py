import hashlib

import fsspec
import pytest
import torch

from branches import checkpoint_files
from branches.beats import load_beats
from branches.checkpoint_files import is_remote, local_file
from scoring.errors import InputError

CONTENT = b"weights"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
URI = "memory://beats.pt"


def test_the_digest_or_its_first_digits_tell_a_file(tmp_path):
    file = tmp_path / "100 % mine#1.pt"
    file.write_bytes(CONTENT)
    for given in (None, DIGEST, DIGEST[:8], DIGEST.upper()):
        for path in (str(file), file.as_uri(), f"file://{file}"):
            assert local_file(path, given) == file
            assert not is_remote(path)
    with pytest.raises(InputError, match=f"mine#1.pt has sha256 {DIGEST}, not 00000000…; fetch the right file"):
        local_file(str(file), "00000000")
    for wrong in (DIGEST[:7], "", "x" * 8, DIGEST + "0"):
        with pytest.raises(InputError, match=f"sha256 '{wrong}' must be 8 to 64 hex digits"):
            local_file(str(file), wrong)
    with pytest.raises(InputError, match=r"absent\.pt: no such file; give a BEATs checkpoint's path or URI"):
        local_file(str(tmp_path / "absent.pt"), None)


@pytest.mark.parametrize(
    ("place", "below"), [("TUTTI_CACHE", ""), ("XDG_CACHE_HOME", "tutti"), ("HOME", ".cache/tutti")]
)
def test_remote_files_are_kept_under_their_digest(place, below, tmp_path, monkeypatch):
    for name in ("TUTTI_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(place, str(tmp_path))
    fsspec.filesystem("memory").pipe("/beats.pt", CONTENT)
    with pytest.raises(InputError, match=f"{URI} is not in the cache, a run fetches it"):
        local_file(URI, DIGEST, fetch=False)
    with pytest.raises(InputError, match=f"{URI} has sha256 {DIGEST}, not 00000000…"):
        local_file(URI, "00000000")
    kept = tmp_path / below / f"{DIGEST}.pt"
    assert list(kept.parent.iterdir()) == []
    assert local_file(URI, None) == kept
    assert [p.read_bytes() for p in kept.parent.iterdir()] == [CONTENT]
    fsspec.filesystem("memory").rm("/beats.pt")
    assert local_file(URI, DIGEST[:8]) == local_file(URI, DIGEST, fetch=False) == kept
    with pytest.raises(InputError, match=rf"^{URI} cannot be read: [^\n]+$"):  # another content may lie there now
        local_file(URI, None)


def test_a_place_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise ImportError("Install s3fs\nto read it")

    monkeypatch.setenv("TUTTI_CACHE", str(tmp_path))
    monkeypatch.setattr(fsspec, "open", fail)
    with pytest.raises(InputError, match=r"^s3://bucket/x\.pt cannot be read: Install s3fs$"):
        local_file("s3://bucket/x.pt", None)


@torch.no_grad()
def test_small_is_the_file_that_comes_with_tutti_and_no_other(tmp_path, monkeypatch):
    small = checkpoint_files.SMALL
    assert local_file("small", checkpoint_files.SMALL_SHA256[:8]) == small
    x, _ = load_beats("small")(torch.randn(2, 16_000, generator=torch.Generator().manual_seed(0)) * 0.05)
    assert x.shape == (2, 48, 128)
    assert x.isfinite().all()
    with pytest.raises(InputError, match=r"^small has sha256 .*, not 00000000…: it is of another version of tutti$"):
        local_file("small", "0" * 8)
    (tmp_path / "longer").write_bytes(small.read_bytes() + b"0")
    for other in ("longer", "absent"):
        monkeypatch.setattr(checkpoint_files, "SMALL", tmp_path / other)
        with pytest.raises(InputError, match=rf"^small: .*{other} is not the file that comes with tutti; reinstall"):
            local_file("small", None)
