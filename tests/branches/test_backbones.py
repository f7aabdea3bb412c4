import hashlib
import shutil
from dataclasses import replace
from threading import Thread
from unittest.mock import Mock

import pytest

from branches import backbones, downloads
from branches.backbones import BACKBONES
from branches.checkpoint_files import SMALL, lay_out, local_file
from branches.downloads import download
from branches.spec import BackboneSpec
from scoring.errors import InputError
from tests.web import serving

CONTENT = SMALL.read_bytes()
DIGEST = hashlib.sha256(CONTENT).hexdigest()
FIRST, SECOND, _ = (f"/{mirror}/BEATs_iter3.pt" for mirror in backbones._MIRRORS)
HUB = "/api/models/shikhar7ssu/OpenBEATs-Base-i3"
FILE = "exp/epoch_latest.pt"


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(downloads, "PAUSES", (0.01, 0.02))


@pytest.fixture
def web(monkeypatch, tmp_path):
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("TUTTI_CACHE", str(tmp_path / "cache"))
        monkeypatch.setitem(
            BACKBONES, "BEATs_iter3", replace(BACKBONES["BEATs_iter3"], sha256=DIGEST, size=len(CONTENT))
        )
        yield server


KINDS = {
    None: 1,
    "cut": 3,  # goes on twice
    "whole": 3,  # and begins anew where the server cannot go on
    "slow": 1,
    "busy": 2,
    "other": "gives another file, with sha256 ",
    "page": "answers with a web page",
    404: "answers HTTP 404",
    503: "answers HTTP 503",
}


@pytest.mark.parametrize(("kind", "expected"), KINDS.items())
def test_a_download_goes_on_is_checked_and_takes_the_next_address(web, tmp_path, kind, expected):
    web.files, web.kinds = {"/x": CONTENT, "/mirror": CONTENT}, {"/x": kind}
    urls, target = [f"{web.url}/x?token=1"], tmp_path / "file"
    if isinstance(expected, str):
        with pytest.raises(InputError, match=rf"^cannot be fetched: 127.0.0.1:\d+/x {expected}[^\n]*$"):
            download(target, urls, f"sha256:{DIGEST}", len(CONTENT))
        assert [path.name for path in tmp_path.iterdir()] == [".download.lock"]
        urls.append(f"{web.url}/mirror")
    calls = [Thread(target=download, args=(target, urls, f"sha256:{DIGEST}")) for _ in range(2)]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    assert target.read_bytes() == CONTENT
    assert web.asked["/mirror" if isinstance(expected, str) else "/x"] == (1 if isinstance(expected, str) else expected)


def test_a_checkpoint_has_a_name_mirrors_and_a_digest(web, tmp_path):
    web.files = {FIRST: CONTENT[:-9], SECOND: CONTENT}
    with pytest.raises(InputError, match="BEATs_iter3 is not in the cache, a run fetches it"):
        local_file("BEATs_iter3", None, fetch=False)
    with pytest.raises(InputError, match=f"BEATs_iter3 has sha256 {DIGEST}, not 00000000"):
        local_file("BEATs_iter3", "00000000")
    assert web.asked.total() == 0
    file = local_file("BEATs_iter3", DIGEST[:9])
    assert (file, file.read_bytes()) == (tmp_path / "cache" / "BEATs_iter3.pt", CONTENT)
    asked = web.asked.copy()
    assert local_file("BEATs_iter3", DIGEST) == file
    assert web.asked == asked
    lay_out([BackboneSpec(path="BEATs_iter3"), BackboneSpec(path=str(SMALL))], tmp_path / "shared")
    assert [path.samefile(file) for path in (tmp_path / "shared").iterdir()] == [True]
    file.write_bytes(CONTENT[1:])
    with pytest.raises(InputError, match=rf"BEATs_iter3.pt has sha256 \w+, not {DIGEST}; remove it"):
        local_file("BEATs_iter3", None)


def test_without_network_or_room_one_line_says_what_to_do(web, tmp_path, monkeypatch):
    with pytest.raises(
        InputError,
        match=rf"^BEATs_iter3: cannot be fetched: .*HTTP 404.*; put BEATs_iter3.pt with sha256 {DIGEST} at [^\n]*$",
    ):
        local_file("BEATs_iter3", None)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"^BEATs_iter3: cannot be fetched: 127\.0\.0\.1 cannot be reached; put"):
        local_file("BEATs_iter3", None)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Mock(free=9))
    with pytest.raises(
        InputError, match=r"BEATs_iter3: .*cache: no room for a download of 1 MB \(0 MB are free\); put"
    ):
        local_file("BEATs_iter3", None)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".download.lock"]


def test_of_openbeats_the_hub_says_which_file_and_digest(web, tmp_path):
    blob = {"size": len(CONTENT), "sha256": DIGEST}
    about = {"sha": "abc", "siblings": [{"rfilename": "README.md"}, {"rfilename": FILE, "lfs": blob}]}
    web.files = {HUB: about, f"/shikhar7ssu/OpenBEATs-Base-i3/resolve/abc/{FILE}": CONTENT}
    assert local_file("OpenBEATs-Base-i3", None).read_bytes() == CONTENT
    (tmp_path / "cache" / "OpenBEATs-Base-i3.pt").unlink()
    for content in ({"sha": "abc", "siblings": []}, b"<html>"):
        web.files[HUB] = content
        with pytest.raises(
            InputError, match=r"^OpenBEATs-Base-i3: [^\n]*(lists no checkpoint|something else than JSON)"
        ):
            local_file("OpenBEATs-Base-i3", None)
