"""Settings of a branch, and the checkpoints that they name: of a path, a URI, a published name."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import get_args
from unittest.mock import Mock

import fsspec
import pytest
import torch

from branches import backbones, checkpoint_files, downloads
from branches import spec as spec_module
from branches.backbones import BACKBONES
from branches.beats import load_beats
from branches.checkpoint_files import SMALL, SMALL_SHA256, is_remote, lay_out, local_file
from branches.downloads import download
from branches.spec import BackboneSpec, BranchSpec, GeneratorSpec, PatchesSpec, Settings, TrainingSpec
from scoring.errors import InputError
from tests.web import serving

SETTINGS = Path(__file__).parents[2] / "docs" / "settings.md"
CONTENT, DIGEST = SMALL.read_bytes(), SMALL_SHA256
URI = "memory://beats.pt"
PLACES = {"TUTTI_CACHE": "", "XDG_CACHE_HOME": "tutti", "HOME": ".cache/tutti"}
FIRST, SECOND, _ = (f"/{mirror}/BEATs_iter3.pt" for mirror in backbones._MIRRORS)
HUB = "/api/models/shikhar7ssu/OpenBEATs-Base-i3"
FILE = "exp/epoch_latest.pt"


def test_a_frozen_branch_is_its_backbone_a_generator_trains_by_its_settings_and_defaults_are_those_of_the_page():
    backbone = {"path": "small", "layers": [0]}
    full = BranchSpec(strategy="frozen", channel="far", seed=3, backbone=backbone, embedding_dim=9)
    backbone = {"path": "small", "sha256": None, "precision": "float32"}
    alone = {"backbone": backbone, "channel": "far", "strategy": {"name": "frozen"}, "seed": 3}
    assert json.loads(full.model_dump_json()) == alone
    assert full.model_dump(exclude_unset=True)["embedding_dim"] == 9  # it keeps what is not used
    assert BranchSpec().model_dump()["backbone"]["layers"] == (-1,)
    embeddings = [PatchesSpec(), PatchesSpec(layers=(0,))]
    assert full.frozen_inputs(embeddings) == [(full, embedding) for embedding in embeddings]
    assert BranchSpec().frozen_inputs(embeddings) == []
    backbone = {"path": "small", "sha256": "d184fd97", "layers": [0], "precision": "bfloat16"}
    other = {"channel": "near", "pooling": "band_mean"}
    for pseudo_labels, channel, pooling in (({}, "far", "mean"), (other, "near", "band_mean")):
        clustered = BranchSpec(classes={"pseudo_labels": pseudo_labels}, backbone=backbone, channel="far")
        as_it_is = BranchSpec(strategy="frozen", channel=channel, backbone={"path": "small", "sha256": "d184fd97"})
        wanted = PatchesSpec.model_validate({"layers": [0], "pooling": pooling})
        assert clustered.frozen_inputs(embeddings) == [(as_it_is, wanted)]
    training = {"steps": 7, "batch_size": 3, "crop_seconds": 1, "learning_rate": 0.5, "warmup_steps": 2}
    assert GeneratorSpec(**training).training == TrainingSpec(**training)
    page, told = SETTINGS.read_text(encoding="utf-8"), 0
    for settings in (s for s in vars(spec_module).values() if isinstance(s, type) and issubclass(s, Settings)):
        for name, field in settings.model_fields.items():
            default = getattr(field.default, "name", field.default)
            if isinstance(default, (bool, int, float, str, tuple)) and len(get_args(field.annotation)) != 1:
                default = default if name != "tokenizers" else [file.path for file in default]
                assert f".{name}` | {json.dumps(default)} |".replace('"', "") in page, (settings, name)
                told += 1
    assert told > 50


def test_a_digest_or_its_first_digits_tell_a_checkpoint_and_small_comes_with_tutti(tmp_path, monkeypatch):
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
    with pytest.raises(InputError, match=r"absent\.pt: no such file; give the path or URI of a checkpoint"):
        local_file(str(tmp_path / "absent.pt"), None)
    assert local_file("small", DIGEST[:8]) == SMALL
    x, _ = load_beats("small")(torch.randn(2, 16_000, generator=torch.Generator().manual_seed(0)) * 0.05)
    assert (x.shape, x.isfinite().all()) == ((2, 48, 128), True)
    with pytest.raises(InputError, match=r"^small has sha256 .*, not 00000000…: it is of another version of tutti$"):
        local_file("small", "0" * 8)
    (tmp_path / "longer").write_bytes(CONTENT + b"0")
    for other in ("longer", "absent"):
        monkeypatch.setattr(checkpoint_files, "SMALL", tmp_path / other)
        with pytest.raises(InputError, match=rf"^small: .*{other} is not the file that comes with tutti; reinstall"):
            local_file("small", None)


@pytest.mark.parametrize(("place", "below"), PLACES.items())
def test_remote_files_are_kept_under_their_digest_and_what_cannot_be_read_named(place, below, tmp_path, monkeypatch):
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
    monkeypatch.setattr(fsspec, "open", Mock(side_effect=ImportError("Install s3fs\nto read it")))
    with pytest.raises(InputError, match=r"^s3://bucket/x\.pt cannot be read: Install s3fs$"):
        local_file("s3://bucket/x.pt", None)


@pytest.fixture
def web(monkeypatch, tmp_path):
    monkeypatch.setattr(downloads, "PAUSES", (0.01, 0.02))
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("TUTTI_CACHE", str(tmp_path / "cache"))
        published = replace(BACKBONES["BEATs_iter3"], sha256=DIGEST, size=len(CONTENT))
        monkeypatch.setitem(BACKBONES, "BEATs_iter3", published)
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


def test_a_checkpoint_has_a_name_mirrors_and_a_digest_which_of_openbeats_the_hub_says(web, tmp_path):
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
    blob = {"size": len(CONTENT), "sha256": DIGEST}
    about = {"sha": "abc", "siblings": [{"rfilename": "README.md"}, {"rfilename": FILE, "lfs": blob}]}
    web.files = {HUB: about, f"/shikhar7ssu/OpenBEATs-Base-i3/resolve/abc/{FILE}": CONTENT}
    assert local_file("OpenBEATs-Base-i3", None).read_bytes() == CONTENT
    (tmp_path / "cache" / "OpenBEATs-Base-i3.pt").unlink()
    for content in ({"sha": "abc", "siblings": []}, b"<html>"):
        web.files[HUB] = content
        with pytest.raises(InputError, match=r"^OpenBEATs-Base-i3: .*(lists no checkpoint|else than JSON)"):
            local_file("OpenBEATs-Base-i3", None)


def test_without_network_or_room_one_line_says_what_to_do(web, tmp_path, monkeypatch):
    def refused(message):
        with pytest.raises(InputError, match=rf"^BEATs_iter3: {message}[^\n]*$"):
            local_file("BEATs_iter3", None)

    refused(f"cannot be fetched: .*HTTP 404.*; put BEATs_iter3.pt with sha256 {DIGEST} at ")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    refused(r"cannot be fetched: 127\.0\.0\.1 cannot be reached; put")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Mock(free=9))
    refused(r".*cache: no room for a download of 1 MB \(0 MB are free\); put")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".download.lock"]
