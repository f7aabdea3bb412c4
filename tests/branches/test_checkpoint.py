"""Checkpoints load as they are, are saved in the same format, and what is wrong with one is named."""

import argparse
import copy
import datetime
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from branches.beats import checkpoint as checkpoint_module
from branches.beats import load_beats, save_beats
from scoring.errors import InputError

FIXTURES = Path(__file__).parent / "fixtures"
TABLE = "encoder.layers.1.self_attn.relative_attention_bias.weight"


@pytest.fixture(scope="module")
def released() -> dict[str, Any]:
    return torch.load(FIXTURES / "pretrained.pt", weights_only=True)


@pytest.fixture
def changed(released, tmp_path) -> Callable[[Callable[[dict[str, Any]], object]], Path]:
    """Writes the released checkpoint after a change."""

    def write(change: Callable[[dict[str, Any]], object]) -> Path:
        content = copy.deepcopy(released)
        change(content)
        torch.save(content, tmp_path / "changed.pt")
        return tmp_path / "changed.pt"

    return write


@pytest.mark.parametrize("name", ["pretrained", "finetuned", "prenorm"])
def test_saved_models_load_again_and_keep_the_released_format(name, tmp_path):
    model = load_beats(FIXTURES / f"{name}.pt")
    save_beats(model, tmp_path / "saved.pt")
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    original = torch.load(FIXTURES / f"{name}.pt", weights_only=True)
    assert saved["model"].keys() == original["model"].keys()
    assert all(torch.equal(saved["model"][k], v) for k, v in original["model"].items())
    assert saved["cfg"].items() <= original["cfg"].items()
    assert load_beats(tmp_path / "saved.pt").config == model.config
    assert [p.name for p in tmp_path.iterdir()] == ["saved.pt"]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint_module.torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_beats(load_beats("tiny"), path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_tiny_is_always_the_same_and_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    first = load_beats("tiny").state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    second = load_beats("tiny").state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_loading_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    model = load_beats(FIXTURES / "pretrained.pt")
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model"].pop("encoder.layers.0.fc1.weight"), r"missing key encoder\.layers\.0\.fc1\.weight$"),
        (lambda c: c["model"].pop(TABLE), f"missing key {TABLE}"),
        (lambda c: c["model"].pop(TABLE.replace("1", "0")), "missing key encoder.layers.0.*relative_attention_bias"),
        (lambda c: c["model"].update({TABLE: torch.ones(32, 4)}), "one table for all layers"),
        (lambda c: c["model"].update(extra=torch.ones(1)), "unexpected key extra"),
        (
            lambda c: c["model"].update({"layer_norm.bias": torch.ones(3)}),
            r"layer_norm\.bias has shape \(3,\), must be \(32,\)",
        ),
        (lambda c: c["cfg"].pop("encoder_layers"), "no encoder_layers"),
        (lambda c: c["cfg"].update(encoder_layers="3"), r"encoder_layers is '3': Input should be a valid integer"),
        (lambda c: c["cfg"].update(encoder_layers=2), "unexpected key encoder.layers.2"),
        (lambda c: c["cfg"].update(dropout=1.5), r"dropout is 1\.5: Input should be less than 1"),
        (lambda c: c["cfg"].update(encoder_attention_heads=5), "not a multiple of encoder_attention_heads"),
        (lambda c: c["cfg"].update(gru_rel_pos=False), "gru_rel_pos is False: Input should be True"),
        (lambda c: c.pop("cfg"), "must hold"),
    ],
)
def test_what_is_wrong_is_named_with_the_file(changed, change, message):
    with pytest.raises(InputError, match=message) as error:
        load_beats(changed(change))
    assert str(error.value).startswith(str(changed(change)))
    assert "\n" not in str(error.value)


def numpy_numbers(content):
    content["cfg"].update(dropout=np.float64(0.0), encoder_layers=np.int64(content["cfg"]["encoder_layers"]))
    content["epoch"] = np.float32(3)


def namespace(content):
    content["cfg"] = argparse.Namespace(**content["cfg"])


def prefixed(*prefixes):
    def change(content):
        content["model"] = {"".join(prefixes) + key: value for key, value in content["model"].items()}

    return change


def parametrised(content):
    for kind, number in (("g", 0), ("v", 1)):
        value = content["model"].pop(f"encoder.pos_conv.0.weight_{kind}")
        content["model"][f"encoder.pos_conv.0.parametrizations.weight.original{number}"] = value


@pytest.mark.parametrize(
    "change", [numpy_numbers, namespace, prefixed("module."), prefixed("module.", "_orig_mod."), parametrised]
)
def test_what_training_scripts_wrap_around_a_checkpoint_comes_off(changed, change):
    expected = load_beats(FIXTURES / "pretrained.pt").state_dict()
    loaded = load_beats(changed(change)).state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(when=datetime.date(2026, 1, 1)), "it holds datetime.date; save tensors, numbers and text"),
        (lambda c: c["model"].update({"module.extra": torch.ones(1)}), "unexpected key module.extra"),
    ],
)
def test_what_is_ambiguous_stays_an_error(changed, change, message):
    with pytest.raises(InputError, match=message):
        load_beats(changed(change))


def test_a_number_in_place_of_a_tensor_is_one_line(changed):
    with pytest.raises(InputError, match=r'it must hold "cfg" and "model" \(a state dict\)$'):
        load_beats(changed(lambda c: c["model"].update({"layer_norm.bias": 1.0})))


def test_a_tokenizer_is_no_backbone():
    with pytest.raises(InputError, match="unexpected key quantize"):
        load_beats(FIXTURES / "tokenizer.pt")


class Intruder:
    def __reduce__(self):
        return print, ("executed",)


def test_files_that_are_no_checkpoints(tmp_path, capsys):
    path = tmp_path / "file.pt"
    released = (FIXTURES / "pretrained.pt").read_bytes()
    for content in (b"", b"RIFF....WAVE", released[: len(released) // 2]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"file\.pt is not a BEATs checkpoint"):
            load_beats(path)
    torch.save({"cfg": Intruder(), "model": {}}, path)
    with pytest.raises(InputError, match=r"file\.pt is not a BEATs checkpoint"):
        load_beats(path)
    assert "executed" not in capsys.readouterr().out
    with pytest.raises(InputError, match="no such file"):
        load_beats(tmp_path / "absent.pt")


def test_digest(tmp_path):
    path = FIXTURES / "pretrained.pt"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    for given in (digest, digest[:8], digest.upper()):
        load_beats(path, sha256=given)
    assert shutil.copy(path, tmp_path / "100 % mine#1.pt")
    for uri in (path.as_uri(), (tmp_path / "100 % mine#1.pt").as_uri(), f"file://{tmp_path}/100 % mine#1.pt"):
        load_beats(uri, sha256=digest)
    with pytest.raises(InputError, match=f"has sha256 {digest}"):
        load_beats(path, sha256="00000000")
    for wrong in (digest[:7], "", "x" * 8, digest + "0"):
        with pytest.raises(InputError, match="hex digits"):
            load_beats(path, sha256=wrong)


def test_remote_files_are_kept_under_their_digest(tmp_path, monkeypatch):
    monkeypatch.setenv("TUTTI_CACHE", str(tmp_path / "cache"))
    content = (FIXTURES / "pretrained.pt").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    with fsspec.open("memory://beats.pt", "wb") as file:
        file.write(content)
    with pytest.raises(InputError, match="has sha256"):
        load_beats("memory://beats.pt", sha256="00000000")
    assert list((tmp_path / "cache").iterdir()) == []
    load_beats("memory://beats.pt")
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [f"{digest}.pt"]
    fsspec.filesystem("memory").rm("/beats.pt")
    load_beats("memory://beats.pt", sha256=digest[:8])
    with pytest.raises(InputError, match=r"memory://beats\.pt cannot be read"):
        load_beats("memory://beats.pt")


def test_cache_folder_follows_the_users(tmp_path, monkeypatch):
    monkeypatch.delenv("TUTTI_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with fsspec.open("memory://beats.pt", "wb") as target, (FIXTURES / "prenorm.pt").open("rb") as source:
        shutil.copyfileobj(source, target)
    load_beats("memory://beats.pt")
    assert len(list((tmp_path / "tutti").glob("*.pt"))) == 1


@pytest.mark.parametrize("uri", ["nonsense://x.pt", "s3://bucket/x.pt"])
def test_unknown_places_are_one_line(uri, tmp_path, monkeypatch):
    monkeypatch.setenv("TUTTI_CACHE", str(tmp_path))
    monkeypatch.setattr(fsspec, "open", fail_to_open)
    with pytest.raises(InputError, match=f"{uri} cannot be read: Install s3fs$"):
        load_beats(uri)


def fail_to_open(*_: object) -> None:
    raise ImportError("Install s3fs\nto read it")
