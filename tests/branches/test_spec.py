import hashlib
import json
from pathlib import Path
from typing import get_args
from unittest.mock import Mock

import fsspec
import pytest
import torch

from branches import checkpoint_files
from branches import spec as spec_module
from branches.beats import load_beats
from branches.checkpoint_files import is_remote, local_file
from branches.spec import BranchSpec, GeneratorSpec, PatchesSpec, Settings, TrainingSpec
from scoring.errors import InputError

SETTINGS = Path(__file__).parents[2] / "docs" / "settings.md"
CONTENT = b"weights"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
URI = "memory://beats.pt"
PLACES = {"TUTTI_CACHE": "", "XDG_CACHE_HOME": "tutti", "HOME": ".cache/tutti"}


def test_a_frozen_branch_is_its_backbone_and_channel_and_wants_embeddings_as_pseudo_labels_do():
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


def test_a_generator_trains_as_its_settings_say_and_all_defaults_are_those_of_the_page():
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
    small = checkpoint_files.SMALL
    assert local_file("small", checkpoint_files.SMALL_SHA256[:8]) == small
    x, _ = load_beats("small")(torch.randn(2, 16_000, generator=torch.Generator().manual_seed(0)) * 0.05)
    assert (x.shape, x.isfinite().all()) == ((2, 48, 128), True)
    with pytest.raises(InputError, match=r"^small has sha256 .*, not 00000000…: it is of another version of tutti$"):
        local_file("small", "0" * 8)
    (tmp_path / "longer").write_bytes(small.read_bytes() + b"0")
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
